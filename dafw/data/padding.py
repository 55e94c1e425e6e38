"""Images of several sizes in one tensor."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Empty = Callable[[Sequence[int], torch.dtype], Tensor]
#: The value of a mask's pixels that have no label: nobody learns from them, and no metric counts them.
IGNORE = 255


def valid_positions(sizes: Tensor, canvas: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Which positions of a feature map belong to the images and not to their padding.

    Args:
        sizes: (N, 2) int64, height and width of each image without its padding.
        canvas: height H and width W of the padded images.
        grid: height h and width w of the feature map; an image of height s covers ceil(s h / H) of its rows.

    Returns:
        (N, h, w) bool. Nothing is read by the host.
    """
    covered = covered_positions(sizes, canvas, grid)
    inside = [torch.arange(grid[axis], device=sizes.device) < covered[:, axis, None] for axis in (0, 1)]
    return inside[0][:, :, None] & inside[1][:, None, :]


def covered_positions(sizes: Tensor, canvas: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """How many rows and columns of a feature map belong to each image, (N, 2) int64; see :func:`valid_positions`."""
    counts = [(sizes[:, axis] * grid[axis] + (canvas[axis] - 1)) // canvas[axis] for axis in (0, 1)]
    return torch.stack(counts, 1)


def pad_to_largest(
    values: Sequence[Tensor], fill: float, empty: Callable[[Sequence[int], torch.dtype], Tensor]
) -> Tensor:
    """Tensors (..., h_i, w_i) to one (N, ..., H, W), each in the upper left corner.

    Args:
        values: tensors of one dtype that agree in all but their last two dimensions.
        fill: the value of the padding.
        empty: makes the result.
    """
    height, width = (max(value.shape[axis] for value in values) for axis in (-2, -1))
    padded = empty((len(values), *values[0].shape[:-2], height, width), values[0].dtype)
    padded.fill_(fill)
    for row, value in zip(padded, values, strict=True):
        row[..., : value.shape[-2], : value.shape[-1]] = value
    return padded


def join_padded(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Batches of images as one batch.

    Args:
        parts: for each the images (n_i, C, h_i, w_i), and their sizes (n_i, 2) within their padding, ``None`` without.

    Returns:
        The images (N, C, H, W), and their sizes (N, 2); ``None`` if no image is padded. Nothing is read by the host.
    """
    images = [image for image, _ in parts]
    if all(sizes is None for _, sizes in parts) and len({image.shape[1:] for image in images}) == 1:
        return torch.cat(images), None
    height, width = (max(image.shape[axis] for image in images) for axis in (2, 3))
    padded = [F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in images]
    known = []
    for image, sizes in parts:
        if sizes is None:
            sides = [torch.full((len(image),), image.shape[axis], device=image.device) for axis in (2, 3)]
            sizes = torch.stack(sides, 1)
        known.append(sizes)
    return torch.cat(padded), torch.cat(known)
