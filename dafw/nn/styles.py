"""The style of an image: the mean and the standard deviation of each of its colours."""

import torch
from torch import Tensor

from dafw.data.padding import valid_positions


def stylise(x: Tensor, style: Tensor, sizes: Tensor | None = None, style_sizes: Tensor | None = None) -> Tensor:
    """Images whose colours have the means and the standard deviations of other images, pair by pair.

    Args:
        x: (n, C, H, W) in [0, 1].
        style: (n, C, h, w) in [0, 1].
        sizes: (n, 2), height and width of each image within its padding; ``None``: every image fills the tensor.
        style_sizes: the same of ``style``.

    Returns:
        (n, C, H, W), cut off at 0 and 1; padding stays as it is.
    """
    (mean, std), (wanted_mean, wanted_std) = moments(x, sizes), moments(style, style_sizes)
    found = ((x - mean) * (wanted_std / std.clamp_min(1e-3)) + wanted_mean).clamp(0, 1)
    return found if sizes is None else torch.where(_inside(x, sizes), found, x)


def moments(x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each channel over the pixels of each image, (n, C, 1, 1) each."""
    if sizes is None:
        return x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True, correction=0)
    inside = _inside(x, sizes).to(x.dtype)
    pixels = inside.sum((2, 3), keepdim=True).clamp_min(1)
    mean = (x * inside).sum((2, 3), keepdim=True) / pixels
    return mean, (((x - mean) * inside).square().sum((2, 3), keepdim=True) / pixels).sqrt()


def _inside(x: Tensor, sizes: Tensor) -> Tensor:
    canvas = (int(x.shape[2]), int(x.shape[3]))
    return valid_positions(sizes, canvas, canvas)[:, None]
