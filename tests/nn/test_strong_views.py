"""Other colours and a blur, and what they leave as it is."""

import numpy as np
import torch

from dafw.nn.class_mix import class_mask
from dafw.nn.draws import draw_rows
from dafw.nn.strong_views import strong_view, strong_views


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_images_that_are_not_drawn_stay() -> None:
    x, drawn = images(), draw_rows(0, 0, "x", 6, 7)
    torch.testing.assert_close(strong_view(x, strong_views(drawn, strength=0.5, jitter=0.0, blur=0.0)), x)
    drawn[:, 0], drawn[:, 5] = [0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0]
    found = strong_view(x, strong_views(drawn, strength=0.5, jitter=0.5, blur=0.5))
    changed = (found - x).abs().amax((1, 2, 3)) > 1e-9
    assert changed.tolist() == [True, True, True, False, True, True]
    assert found.min() >= 0
    assert found.max() <= 1


def test_hue_and_saturation_keep_grey_and_the_mean_brightness() -> None:
    drawn = draw_rows(1, 0, "x", 6, 7)
    drawn[:, 1:3] = 0.5  # no other brightness and contrast
    views = strong_views(drawn, strength=0.4, jitter=1.0, blur=0.0)
    grey = images()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(strong_view(grey, views), grey)
    np.testing.assert_allclose(np.array([0.299, 0.587, 0.114]) @ views.colours, np.tile([0.299, 0.587, 0.114], (6, 1)))


def test_contrast_keeps_the_mean_grey() -> None:
    drawn = draw_rows(1, 0, "x", 6, 7)
    drawn[:, [1, 3, 4]] = 0.5
    x = 0.4 + 0.2 * images()
    found = strong_view(x, strong_views(drawn, strength=0.4, jitter=1.0, blur=0.0))
    torch.testing.assert_close(found.mean((2, 3)) @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), luma(x))
    assert not torch.allclose(found, x)


def luma(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)) @ torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype)


def test_padding_changes_nothing_within_the_image() -> None:
    x, drawn = images(), draw_rows(2, 0, "x", 6, 7)
    views = strong_views(drawn, strength=0.4, jitter=1.0, blur=1.0)
    padded = torch.zeros(6, 3, 12, 11, dtype=torch.float64)
    padded[:, :, :9, :7] = x
    inside = torch.zeros(6, 12, 11, dtype=torch.bool)
    inside[:, :9, :7] = True
    found = strong_view(padded, views, inside)[:, :, :9, :7]
    torch.testing.assert_close(found, strong_view(x, views))
    flat = torch.full_like(x, 0.3)
    blurred = strong_view(flat, strong_views(drawn, strength=0.0, jitter=0.0, blur=1.0))
    torch.testing.assert_close(blurred, flat)


def test_classes_are_drawn_among_those_of_the_image() -> None:
    labels = torch.tensor([[[0, 0, 3], [3, 5, 255]], [[255, 255, 255], [255, 255, 255]], [[2, 2, 2], [2, 2, 255]]])
    seen = set()
    for step in range(40):
        mask = class_mask(labels, torch.tensor(draw_rows(0, step, "classes", 3, 6)))
        pasted = tuple(labels[0][mask[0]].unique().tolist())
        assert len(pasted) == 2
        seen.add(pasted)
        assert not mask[1].any()
        assert torch.equal(mask[2], labels[2] == 2)
    assert seen == {(0, 3), (0, 5), (3, 5)}
