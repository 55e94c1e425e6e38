"""Images whose shapes are destroyed, while most of their colours and textures stay: DeYO's three ways."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.nn.draws import draw_rows


def as_floats(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in [0, 1]: uint8 values are divided by 255, floating point ones stay.

    Args:
        images: (n, C, H, W).
        dtype: of the result.
    """
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)


def random_orders(seed: int, step: int, rows: int | None, length: int) -> Tensor:
    """Random permutations, a pure function of seed, step and place of a row in the batch of all ranks.

    Args:
        seed: of the run.
        step: number of the batch.
        rows: number n of this rank's rows, each with an order of its own; ``None``: one order that all ranks share.
        length: of a permutation.

    Returns:
        (n, length) int64 on the host; n is 1 for one order.
    """
    if rows is None:
        numbers = np.random.default_rng([seed % 2**32, step]).random((1, length))
    else:
        numbers = draw_rows(seed, step, "orders", rows, length)
    return torch.from_numpy(np.argsort(numbers, axis=1))


def shuffle_patches(images: Tensor, orders: Tensor, patches: int) -> Tensor:
    """Each image cut into a grid of patches, which change places.

    An image whose sides the number of patches does not divide is scaled down to sides that it divides, and back
    afterwards, bilinearly with antialiasing.

    Args:
        images: (n, C, H, W) in floating point.
        orders: (n, g * g) int64: which patch comes to each place, row by row.
        patches: patches g in each direction, at most as many as pixels.

    Returns:
        (n, C, H, W).
    """
    (rows, channels, height, width), g = images.shape, patches
    high, wide = height // g, width // g
    fitting = _scaled(images, (high * g, wide * g))
    cut = fitting.view(rows, channels, g, high, g, wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    places = orders.to(images.device, non_blocking=True)[:, :, None, None, None].expand(-1, -1, *cut.shape[2:])
    moved = cut.gather(1, places).view(rows, g, g, channels, high, wide)
    return _scaled(moved.permute(0, 3, 1, 4, 2, 5).reshape(fitting.shape), (height, width))


def _scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def shuffle_pixels(images: Tensor, order: Tensor) -> Tensor:
    """All pixels of each image in another order, the same for all images.

    Args:
        images: (n, C, H, W).
        order: (H * W,) int64: which pixel comes to each place, row by row.
    """
    return images.flatten(2).index_select(2, order.to(images.device, non_blocking=True)).view(images.shape)


def occlude(images: Tensor, start: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Images with a rectangle in the mean colour of each.

    Args:
        images: (n, C, H, W) in floating point.
        start: first row and first column of the rectangle.
        size: its height and width.
    """
    covered = images.clone()
    down, right = (slice(first, first + length) for first, length in zip(start, size, strict=True))
    covered[:, :, down, right] = images.mean((2, 3), keepdim=True)
    return covered
