"""Affine maps: composed, inverted, and applied there and back."""

import math

import pytest
import torch
from torch import Tensor

from dafw.nn.geometry import bilinear, compose, invert, move_boxes, move_points, nearest


def turned(angle: float, scale: float, shift: tuple[float, float], centre: tuple[float, float] = (20, 16)) -> Tensor:
    """Turns and scales about a centre, then shifts."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x, y = centre
    return torch.tensor([[cos, -sin, x - cos * x + sin * y + shift[0]], [sin, cos, y - sin * x - cos * y + shift[1]]])


MAPS = torch.stack([turned(0.3, 1.3, (2, -1)), turned(-1.2, 0.8, (0.4, 3)), torch.tensor([[-1.0, 0, 40], [0, 1, 0]])])


def test_points_there_and_back() -> None:
    points = torch.rand(3, 50, 2) * torch.tensor([40, 32])
    there = move_points(points, MAPS)
    assert (move_points(there, invert(MAPS)) - points).abs().max() < 1e-3
    torch.testing.assert_close(move_points(there, MAPS[[1, 2, 0]]), move_points(points, compose(MAPS, MAPS[[1, 2, 0]])))
    same = compose(MAPS, invert(MAPS))
    torch.testing.assert_close(same, torch.eye(2, 3).expand(3, 2, 3), atol=1e-4, rtol=0)


def test_boxes_there_and_back_hold_the_first_ones() -> None:
    boxes = torch.tensor([[4.0, 5, 12, 9], [20, 10, 30, 31]])
    for each in MAPS:
        back = move_boxes(move_boxes(boxes, each), invert(each))
        assert (back[:, :2] <= boxes[:, :2] + 1e-3).all()
        assert (back[:, 2:] >= boxes[:, 2:] - 1e-3).all()
    torch.testing.assert_close(move_boxes(move_boxes(boxes, MAPS[2]), invert(MAPS[2])), boxes)
    assert move_boxes(boxes, MAPS[2], torch.tensor([32, 14])).tolist() == [[14, 5, 14, 9], [10, 10, 14, 31]]


def test_what_is_carried_there_and_back_is_at_most_one_pixel_off() -> None:
    """A map of its own coordinates says of each value where it came from."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    where = (torch.stack([columns, rows]) + 0.5).expand(3, 2, 32, 40)
    canvas, back = (96, 96), (32, 40)
    shifted = compose(MAPS, torch.eye(2, 3) + torch.tensor([[0, 0, 30.0], [0, 0, 30.0]]))
    there = bilinear(where, shifted, canvas, fill=-1)
    again = bilinear(there, invert(shifted), back, fill=-1)
    seen = (again - where).abs()[:, :, 4:-4, 4:-4]
    assert seen.max() <= 1
    for axis in (0, 1):
        picked = nearest(nearest(where[:, axis], shifted, canvas, -1), invert(shifted), back, -1)
        kept = (picked >= 0)[:, 2:-2, 2:-2]
        off = (picked - where[:, axis]).abs()[:, 2:-2, 2:-2]
        assert off[[0, 2]][kept[[0, 2]]].max() <= 1
        assert off[1][kept[1]].max() <= 0.5 + 0.5 / 0.8  # half a pixel in each image, and the second one is smaller
        assert kept.float().mean() > 0.95


def test_whole_pixels_are_moved_exactly() -> None:
    values = torch.arange(12.0).view(1, 1, 3, 4)
    move = torch.tensor([[[1.0, 0, 1], [0, 1, -1]]])
    expected = [[-9, 4, 5, 6], [-9, 8, 9, 10], [-9, -9, -9, -9]]
    assert bilinear(values, move, (3, 4), -9)[0, 0].tolist() == expected
    assert nearest(values[:, 0], move, (3, 4), -9)[0].tolist() == expected
    sizes = torch.tensor([[3, 2]])
    assert bilinear(values, move, (3, 4), -9, sizes)[0, 0].tolist() == [[-9, 4, -9, -9], [-9, 8, -9, -9], [-9] * 4]
    half = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]])
    assert bilinear(values, half, (3, 4), -9)[0, 0, 0].tolist() == pytest.approx([0, 0.5, 1.5, 2.5], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_gradients(dtype: torch.dtype) -> None:
    values = torch.rand(3, 2, 8, 8, dtype=dtype, requires_grad=True)
    moved = bilinear(values, MAPS, (8, 8))
    assert moved.dtype == dtype
    bilinear(values, torch.eye(2, 3).expand(3, 2, 3), (8, 8)).sum().backward()
    torch.testing.assert_close(values.grad, torch.ones_like(values))
