"""Affine maps of the image's plane: composed, inverted, and applied to points, boxes and dense maps.

A map is (..., 2, 3). It takes the point (column, row) of one image, in pixels, to a point of another image. The corner
of the first pixel is (0, 0), and its centre (0.5, 0.5).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The map that does one map and then another one: (..., 2, 3), (..., 2, 3) -> (..., 2, 3)."""
    linear = second[..., :2] @ first[..., :2]
    shift = second[..., :2] @ first[..., 2:] + second[..., 2:]
    return torch.cat([linear, shift], -1)


def invert(maps: Tensor) -> Tensor:
    """The maps that undo these: (..., 2, 3) -> (..., 2, 3). A map without an inverse gives infinite or nan values."""
    (a, b, c), (d, e, f) = (row.unbind(-1) for row in maps.unbind(-2))
    scale = a * e - b * d
    rows = [torch.stack([e, -b, b * f - e * c], -1), torch.stack([-d, a, d * c - a * f], -1)]
    return torch.stack(rows, -2) / scale[..., None, None]


def move_points(points: Tensor, maps: Tensor) -> Tensor:
    """Where maps take points: (..., k, 2), (..., 2, 3) -> (..., k, 2)."""
    return points.to(maps.dtype) @ maps[..., :2].mT + maps[..., None, :, 2]


def move_boxes(boxes: Tensor, affine: Tensor, limit: Tensor | None = None) -> Tensor:
    """The boxes around the moved corners of boxes.

    Args:
        boxes: (k, 4), as x1, y1, x2, y2 in pixels.
        affine: (2, 3).
        limit: (2,), height and width of the image that they are clipped to; ``None``: they are not clipped.

    Returns:
        (k, 4), in the dtype of the map.
    """
    moved = move_points(boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].view(-1, 4, 2), affine)
    if limit is not None:
        moved = moved.clamp_min(0).minimum(limit.flip(0).to(moved.dtype))
    return torch.cat([moved.amin(1), moved.amax(1)], 1)


def origins(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the centre of each pixel came from: maps (n, 2, 3) -> columns and rows (n, *size) in pixels."""
    rows = torch.arange(size[0], device=maps.device, dtype=maps.dtype)[:, None] + 0.5
    columns = torch.arange(size[1], device=maps.device, dtype=maps.dtype)[None, :] + 0.5
    a, b, c, d, e, f = (part[:, None, None] for part in maps.flatten(1).unbind(1))
    right, down, scale = columns - c, rows - f, a * e - b * d
    return (e * right - b * down) / scale, (a * down - d * right) / scale


def _inside(columns: Tensor, rows: Tensor, source: tuple[int, int], sizes: Tensor | None) -> Tensor:
    """Which pixels (n, h, w) come from within the source, and lie within the new images of these ``sizes`` (n, 2)."""
    height, width = source
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    if sizes is None:
        return inside
    down = torch.arange(inside.shape[1], device=inside.device)[:, None]
    across = torch.arange(inside.shape[2], device=inside.device)[None, :]
    return inside & (down < sizes[:, :1, None]) & (across < sizes[:, 1:, None])


def nearest(values: Tensor, maps: Tensor, size: tuple[int, int], fill: float, sizes: Tensor | None = None) -> Tensor:
    """Dense values after affine maps, each from the nearest pixel, as for masks of classes. The host reads nothing.

    Args:
        values: (n, h, w), of any dtype.
        maps: (n, 2, 3).
        size: height and width of the result.
        fill: the value where no pixel came from.
        sizes: (n, 2), height and width of each new image without its padding, which is filled too.

    Returns:
        (n, *size).
    """
    height, width = values.shape[1:]
    columns, rows = (place.floor() for place in origins(maps, size))
    inside = _inside(columns, rows, (height, width), sizes)
    place = torch.where(inside, rows * width + columns, 0).long().flatten(1)
    return values.flatten(1).gather(1, place).view(inside.shape).masked_fill(~inside, fill)


def bilinear(
    values: Tensor, maps: Tensor, size: tuple[int, int], fill: float = 0.0, sizes: Tensor | None = None
) -> Tensor:
    """Dense values after affine maps, each a mean of the four nearest pixels, as for scores and features.

    A gradient flows to the values. Within half a pixel of the border, the border's own value counts. The host reads
    nothing.

    Args:
        values: (n, c, h, w) in floating point.
        maps: (n, 2, 3), in pixels of these values: those of a feature map of stride s have shifts that are s times
            smaller than those of its images.
        size: height and width of the result.
        fill: the value where no pixel came from.
        sizes: (n, 2), height and width of each new image without its padding, which is filled too.

    Returns:
        (n, c, *size), in the dtype of the values.
    """
    height, width = values.shape[2:]
    columns, rows = origins(maps, size)
    inside = _inside(columns, rows, (height, width), sizes)
    places = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], -1)
    wide = torch.promote_types(values.dtype, torch.float32)
    moved = F.grid_sample(values.to(wide), places.to(wide), padding_mode="border", align_corners=False)
    return moved.to(values.dtype).masked_fill(~inside[:, None], fill)
