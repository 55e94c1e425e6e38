"""Transforms of whole samples: one draw moves the image and its mask or boxes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from dafw.errors import UserError

Augmentation = Callable[..., Any]


def is_geometric(y: Any) -> bool:
    """Whether a label lies in the image's plane (a mask, boxes), so that what moves the image must move it too."""
    return (isinstance(y, Tensor) and y.ndim >= 2) or (isinstance(y, Mapping) and "boxes" in y)


def transform_sample(transform: Augmentation, x: Any, y: Any, key: str = "data.augment") -> tuple[Any, Any]:
    """A sample after a random transform. A class label stays as it is, and the transform gets the image alone.

    Args:
        transform: takes and returns an image, or, for a mask or boxes, is a transform of torchvision v2.
        x: the input; an image (C, H, W) where ``y`` is geometric.
        y: the label, see :class:`~dafw.data.batch.Sample`; ``None`` without one.
        key: the configuration key that names the transform, for messages.

    Returns:
        The input and its label. Boxes are clipped to the image; those with a side below one pixel are left out.

    Raises:
        UserError: if the transform cannot move the label with the image.
    """
    if not is_geometric(y):
        return transform(x), y
    _check(transform, key)
    canvas = tuple(x.shape[-2:])
    image = tv_tensors.Image(x)
    if isinstance(y, Tensor):
        moved, label = _call(transform, key, image, tv_tensors.Mask(y))
    else:
        boxes = tv_tensors.BoundingBoxes(y["boxes"], format="XYXY", canvas_size=canvas, clamping_mode=None)
        moved, label = _call(transform, key, image, {**y, "boxes": boxes})
    if isinstance(label, Mapping):
        return _plain(moved), _visible(label, tuple(moved.shape[-2:]))
    if label.shape[-2:] != moved.shape[-2:]:
        raise UserError(f"{key} makes images of {_size(moved)} and masks of {_size(label)}: it must treat both alike")
    return _plain(moved), _plain(label)


def transform_view(transform: Augmentation, x: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """A further view of an image, and where it took each pixel.

    Args:
        transform: a transform of torchvision v2.
        x: (C, H, W).
        key: what to call the transform in messages.

    Returns:
        The view, (C, h, w), and the affine map (2, 3) in float32 from coordinates (column, row) in ``x`` to those in
        the view; the corner of the first pixel is (0, 0).

    Raises:
        UserError: if the transform is not of torchvision v2, or moves pixels by no affine map.
    """
    _check(transform, key)
    height, width = x.shape[-2:]
    corners = torch.tensor([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]])
    points = tv_tensors.BoundingBoxes(  # boxes without extent move as points, and those of v2 may leave the image
        corners.repeat(1, 2), format="XYXY", canvas_size=(height, width), clamping_mode=None
    )
    view, moved = _call(transform, key, tv_tensors.Image(x), points)
    origin, right, down, far = moved.as_subclass(Tensor)[:, :2]
    if (right + down - origin - far).abs().max() > 0.01 * max(height, width):
        raise UserError(f"{key} bends images: a view of masks or boxes needs an affine transform")
    return _plain(view), torch.stack([(right - origin) / width, (down - origin) / height, origin], 1)


def _check(transform: Augmentation, key: str) -> None:
    if isinstance(transform, nn.Sequential):
        for part in transform:
            _check(part, key)
    elif isinstance(transform, v2.Compose):
        for part in transform.transforms:
            _check(part, key)
    elif not isinstance(transform, v2.Transform):
        name = getattr(transform, "__name__", type(transform).__name__)
        raise UserError(
            f"{key}: {name} moves an image without its mask or boxes: use transforms of torchvision.transforms.v2"
        )


def _call(transform: Augmentation, key: str, *sample: Any) -> Any:
    try:
        return transform(*sample)
    except TypeError as error:
        raise UserError(f"{key} cannot carry this label: {error}") from error


def _visible(label: Mapping[str, Any], canvas: tuple[int, ...]) -> dict[str, Any]:
    height, width = canvas
    boxes = label["boxes"].as_subclass(Tensor)
    if not len(boxes):
        return {**label, "boxes": boxes}
    clipped = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], -1).flatten(1)
    kept = (clipped[:, 2:] - clipped[:, :2] >= 1).all(1)
    per_box = {
        name: value[kept]
        for name, value in label.items()
        if name != "boxes" and isinstance(value, Tensor) and len(value) == len(boxes)
    }
    return {**label, **per_box, "boxes": clipped[kept]}


def _plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape[-2:]))
