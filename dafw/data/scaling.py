"""Scaling and cutting of images of uint8, with tensors of any sizes: an exported program does the same."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Fit = Literal["crop", "squash"]
Size = int | tuple[int, int]
"""Pixels of the short side, or height and width."""
_LONGEST = 100
"""A strip that is more than this many times as long as wide is cut before it is scaled."""


def fit_pixels(pixels: Tensor, size: int, fit: Fit) -> Tensor:
    """Images as evaluation sees them, by antialiased bilinear interpolation of uint8.

    Torch's scaling of bytes takes a third of Pillow's time; they differ by one level.

    Args:
        pixels: uint8 (N, C, H, W). H and W may be sizes of a program that is traced.
        size: height and width of the result, in pixels.
        fit: ``crop`` scales the short side to ``size`` and cuts the middle out; ``squash`` scales both sides.

    Returns:
        (N, C, size, size).
    """
    if fit == "squash":
        return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    short: Any = torch.sym_min(pixels.shape[-2], pixels.shape[-1])
    height, width = (torch.sym_min(side, _LONGEST * short) for side in pixels.shape[-2:])
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    pixels = cut(cut(pixels, -2, top, height), -1, left, width)
    sides = (size * height // short, size * width // short)
    return cut_middle(functional.interpolate(pixels, sides, mode="bilinear", antialias=True), size)


def cut_middle(images: Tensor, size: int) -> Tensor:
    """The middle of images: (..., H, W) -> (..., size, size)."""
    top, left = (rounded(side - size, 2) for side in images.shape[-2:])
    return cut(cut(images, -2, top, size), -1, left, size)


def cut(images: Tensor, dim: int, start: Any, length: Any) -> Tensor:
    """A part of a dimension. A traced program takes it by index: a slice would keep it to sizes like the example's."""
    if isinstance(images.shape[dim], int) and isinstance(length, int):
        return images.narrow(dim, start, length)
    return images.index_select(dim, torch.arange(length, device=images.device) + start)


def rounded(number: Any, by: Any) -> Any:
    """``round(number / by)``, also of sizes of a program that is traced: a half goes to the even number."""
    whole = number // by
    return whole + (2 * (number % by) + whole % 2 + by - 1) // (2 * by)


def scaled_size(given: Sequence[Any], size: Size | None) -> tuple[Any, Any]:
    """Height and width of an image after scaling; ``None`` leaves it as it is. They may be sizes of a traced program.

    >>> scaled_size((720, 1280), 360), scaled_size((720, 1280), (512, 1024)), scaled_size((720, 1280), None)
    ((360, 640), (512, 1024), (720, 1280))
    """
    height, width = given
    if size is None:
        return height, width
    if isinstance(size, int):
        short: Any = torch.sym_min(height, width)
        return rounded(height * size, short), rounded(width * size, short)
    return size


def scale_image(image: Tensor, size: int) -> Tensor:
    """All of an image of uint8, scaled by antialiased bilinear interpolation: (C, H, W) -> (C, size, size)."""
    if image.shape[-2:] == (size, size):
        return image
    return functional.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
