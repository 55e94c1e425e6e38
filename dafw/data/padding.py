"""Images of several sizes in one tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Empty = Callable[[Sequence[int], torch.dtype], Tensor]
#: The value of a mask's pixels that have no label: nobody learns from them, and no metric counts them.
IGNORE = 255


def positions_inside(sizes: Tensor, canvas: tuple[int, int], height: int, width: int) -> Tensor:
    """The positions of feature maps that no padding covers.

    Args:
        sizes: (n, 2) int64, height and width of each image within its padding.
        canvas: height and width of the padded images.
        height: height of the maps.
        width: width of the maps.

    Returns:
        (n, 1, height, width) bool; a position counts if the image reaches into it.
    """
    marks = []
    for axis, (cells, whole) in enumerate(zip((height, width), canvas, strict=True)):
        starts = torch.arange(cells, device=sizes.device) * whole
        marks.append(starts < sizes[:, axis, None] * cells)
    return (marks[0][:, :, None] & marks[1][:, None])[:, None]


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
