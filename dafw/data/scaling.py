"""Scaling and cutting of images of uint8, with tensors of any sizes: an exported program does the same."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Fit = Literal["crop", "squash"]
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
    pixels = _cut(_cut(pixels, -2, top, height), -1, left, width)
    sides = (size * height // short, size * width // short)
    return cut_middle(functional.interpolate(pixels, sides, mode="bilinear", antialias=True), size)


def cut_middle(images: Tensor, size: int) -> Tensor:
    """The middle of images: (..., H, W) -> (..., size, size)."""
    top, left = (_half(side - size) for side in images.shape[-2:])
    return _cut(_cut(images, -2, top, size), -1, left, size)


def _cut(images: Tensor, dim: int, start: Any, length: Any) -> Tensor:
    """A part of a dimension. A traced program takes it by index: a slice would keep it to sizes like the example's."""
    if isinstance(images.shape[dim], int):
        return images.narrow(dim, start, length)
    return images.index_select(dim, torch.arange(length, device=images.device) + start)


def _half(margin: Any) -> Any:
    """``round(margin / 2)``, also of a size of a program that is traced: a half goes to the even number."""
    return margin // 2 + (margin % 2) * (margin // 2 % 2)


def scale_image(image: Tensor, size: int) -> Tensor:
    """All of an image of uint8, scaled by antialiased bilinear interpolation: (C, H, W) -> (C, size, size)."""
    if image.shape[-2:] == (size, size):
        return image
    return functional.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
