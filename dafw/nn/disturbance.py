"""Disturbances of images on their device, with the maps of what they moved, and boxes and regions that follow them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from dafw.data.geometry import bilinear, move_boxes
from dafw.nn.draws import on_device
from dafw.nn.strong_views import strong_view, strong_views
from dafw.problems.reads import needed_reads
from dafw.ranges import Checked, ClosedUnitInterval, NonNegativeFloat, PositiveFloat

#: Random numbers that one image takes.
NUMBERS = 13
Boxes = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Disturbance(Checked):
    """How much images change. Each image has random numbers of its own.

    Args:
        colours: s: brightness, contrast and saturation are multiplied by factors from [1 - s, 1 + s].
        hue: the hue turns by up to this share of a full turn.
        blur: probability that an image is blurred, see :func:`~dafw.nn.strong_views.strong_views`.
        zoom: probability that an image is scaled around its centre, by f or by 1 / f.
        near: f is from [1, near], unless it is a far one.
        far: f of a far one is from [near, far].
        far_share: probability that f is a far one.
        shift: probability that an image which is not scaled is moved, along the diagonal.
        pixels: the most that it moves in each direction.
        flip: probability that an image is mirrored.
    """

    config_key: ClassVar[str] = "model"
    colours: ClosedUnitInterval = 0.1
    hue: ClosedUnitInterval = 0.0
    blur: ClosedUnitInterval = 0.0
    zoom: ClosedUnitInterval = 0.0
    near: PositiveFloat = 1.5
    far: PositiveFloat = 1.5
    far_share: ClosedUnitInterval = 0.0
    shift: ClosedUnitInterval = 0.0
    pixels: NonNegativeFloat = 8.0
    flip: ClosedUnitInterval = 0.0


@dataclass(frozen=True)
class Heavy(Disturbance):
    """NSA's heavy disturbance, with the numbers of its authors' code; see :class:`Disturbance`."""

    config_key: ClassVar[str] = "model.heavy"
    hue: ClosedUnitInterval = 0.1
    blur: ClosedUnitInterval = 0.2
    zoom: ClosedUnitInterval = 1.0
    near: PositiveFloat = 2.0
    far: PositiveFloat = 3.5
    far_share: ClosedUnitInterval = 0.3
    flip: ClosedUnitInterval = 0.15


@dataclass(frozen=True)
class Light(Disturbance):
    """NSA's light disturbance, with the numbers of its authors' code; see :class:`Disturbance`."""

    config_key: ClassVar[str] = "model.light"
    colours: ClosedUnitInterval = 0.5
    zoom: ClosedUnitInterval = 0.15
    shift: ClosedUnitInterval = 0.15


class Disturbed(NamedTuple):
    """Disturbed images.

    Attributes:
        x: (n, C, H, W) in [0, 1]; what comes from outside an image is grey.
        maps: (n, 2, 3), from pixels of the images to those of the disturbed ones.
    """

    x: Tensor
    maps: Tensor


def disturb(
    x: Tensor, drawn: NDArray[Any], how: Disturbance, sizes: Tensor | None = None, inside: Tensor | None = None
) -> Disturbed:
    """Other colours, a blur, then another scale or place. The host reads nothing.

    Args:
        x: images (n, C, H, W) in [0, 1].
        drawn: random numbers (n, :data:`NUMBERS`) in [0, 1).
        how: the disturbance.
        sizes: (n, 2), height and width of each image without its padding; ``None``: no image is padded.
        inside: (n, H, W) bool, which pixels belong to the images; ``None``: all do.
    """
    numbers = drawn[:, :7].copy()
    if how.colours:  # the views turn the hue by as much as they change the rest
        numbers[:, 4] = 0.5 + (numbers[:, 4] - 0.5) * how.hue / how.colours
    views = strong_views(numbers, strength=how.colours, jitter=1.0, blur=how.blur)
    seen = strong_view(x, views, inside)
    maps = affine_maps(drawn[:, 7:], how, seen, sizes)
    moved = bilinear(seen - 0.5, maps, (x.shape[2], x.shape[3]), 0.0, sizes) + 0.5
    return Disturbed(moved, maps)


def affine_maps(drawn: NDArray[Any], how: Disturbance, like: Tensor, sizes: Tensor | None) -> Tensor:
    """The affine maps (n, 2, 3) of random numbers (n, 6), for images ``like`` (n, C, H, W) of these ``sizes``."""
    zooms = drawn[:, 0] < how.zoom
    is_far = drawn[:, 1] < how.far_share
    low, high = np.where(is_far, how.near, 1.0), np.where(is_far, how.far, how.near)
    factor = low + (high - low) * drawn[:, 2]
    factor = np.where(zooms, np.where(drawn[:, 3] < 0.5, factor, 1 / factor), 1.0)
    left = how.shift / max(1 - how.zoom, 1e-9)  # of the images that are not scaled
    share = np.where(zooms, 1.0, (drawn[:, 0] - how.zoom) / max(1 - how.zoom, 1e-9))
    offset = np.where(share < left, how.pixels * (2 * drawn[:, 4] - 1), 0.0)
    packed = on_device(np.stack([factor, offset, np.where(drawn[:, 5] < how.flip, -1.0, 1.0)], 1), like)
    scale, move, sign = packed[:, :1], packed[:, 1:2], packed[:, 2]
    extent = like.new_tensor([like.shape[3], like.shape[2]]).expand(len(like), 2)  # width, height
    if sizes is not None:
        extent = sizes.flip(1).to(like.dtype)
    shift = (1 - scale) * extent / 2 + move
    across = torch.where(sign < 0, extent[:, 0] - shift[:, 0], shift[:, 0])
    zero = torch.zeros_like(sign)
    rows = [torch.stack([sign * scale[:, 0], zero, across], 1), torch.stack([zero, scale[:, 0], shift[:, 1]], 1)]
    return torch.stack(rows, 1)


def moved_regions(boxes: list[Tensor], maps: Tensor) -> list[Tensor]:
    """Where maps (N, 2, 3) take the boxes (n, 4) of each image. None is clipped or left out, so rows correspond."""
    return [move_boxes(one, affine).to(one.dtype) for one, affine in zip(boxes, maps, strict=True)]


def visible_share(boxes: Tensor, limit: Tensor) -> Tensor:
    """The share of each box's area (n, 4) that lies within an image of height and width ``limit`` (2,) -> (n,)."""
    inside = torch.stack([boxes[:, 0::2].clamp_min(0), boxes[:, 1::2].clamp_min(0)], -1).flatten(1)
    inside = inside.minimum(limit.flip(0).repeat(2).to(inside.dtype))
    areas = [(one[:, 2:] - one[:, :2]).clamp_min(0).prod(1) for one in (inside, boxes)]
    return areas[0] / areas[1].clamp_min(1e-6)


def moved_labels(
    labels: Boxes, maps: Tensor, limits: Tensor, visible: float, least_side: float, largest: float
) -> list[dict[str, Tensor]]:
    """Labels that follow maps (N, 2, 3); the host reads how many boxes remain.

    Args:
        labels: of N images, ``boxes`` (n, 4) and ``labels`` (n,) each.
        maps: where their pixels went.
        limits: (N, 2), height and width of each image.
        visible: a box remains if more than this share of its area is within the image,
        least_side: and both sides within it are longer than this, in pixels,
        largest: and shorter than, or as long as, this share of the image's.
    """
    found = []
    for label, affine, limit in zip(labels, maps, limits, strict=True):
        whole = move_boxes(label["boxes"], affine)
        clipped = move_boxes(label["boxes"], affine, limit)
        sides = clipped[:, 2:] - clipped[:, :2]
        kept = (visible_share(whole, limit) > visible) & (sides > least_side).all(1)
        kept &= (sides <= largest * limit.flip(0).to(sides.dtype)).all(1)
        with needed_reads():
            boxes, classes = clipped[kept].to(label["boxes"].dtype), label["labels"][kept]
        found.append({"boxes": boxes, "labels": classes})
    return found


def region_labels(regions: list[Tensor], truth: Boxes, overlap: float = 0.5) -> Tensor:
    """The class (R,) int64 of each region from 1, or 0: that of the box that overlaps it most, if by ``overlap``.

    Args:
        regions: boxes (n, 4) of each image.
        truth: boxes and labels of each image.
        overlap: least intersection over union.
    """
    found = []
    for boxes, label in zip(regions, truth, strict=True):
        if not len(label["boxes"]):
            found.append(torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device))
            continue
        best, which = box_iou(boxes, label["boxes"].to(boxes.dtype)).max(1)
        found.append(torch.where(best >= overlap, label["labels"][which] + 1, 0))
    return torch.cat(found)


def position_labels(truth: Boxes, grid: tuple[int, int], stride: tuple[float, float], like: Tensor) -> Tensor:
    """The class of each position of a feature map, (N, h, w) int64 from 1: that of the first box that its centre is in.

    It is 0 for a position in no box.

    Args:
        truth: boxes and labels of each of N images.
        grid: height and width of the map.
        stride: of the map in both directions, in pixels.
        like: a tensor on the device, in floating point.
    """
    rows = (torch.arange(grid[0], device=like.device, dtype=like.dtype) + 0.5) * stride[0]
    columns = (torch.arange(grid[1], device=like.device, dtype=like.dtype) + 0.5) * stride[1]
    found = []
    for label in truth:
        left, top, right, bottom = label["boxes"].to(like.dtype)[:, :, None].unbind(1)
        down, across = (rows > top) & (rows < bottom), (columns > left) & (columns < right)
        count = len(label["boxes"])
        number = torch.arange(count, device=like.device)[:, None, None]
        first = torch.where(down[:, :, None] & across[:, None, :], number, count)
        ground = first.new_full((1, *grid), count)
        classes = torch.cat([label["labels"].to(like.device) + 1, number.new_zeros(1)])
        found.append(classes[torch.cat([first, ground]).amin(0)])
    return torch.stack(found)
