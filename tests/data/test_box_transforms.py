"""Augmentations of images with boxes."""

import pytest
import torch
from torch import Tensor

from dafw.data.box_transforms import Blur, Colours, CutOut, box_transform
from dafw.data.whole_samples import transform_sample, transform_view
from dafw.errors import UserError


def marked() -> tuple[Tensor, dict[str, Tensor]]:
    """A white rectangle on black, and its box."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:22, 5:25] = 255
    return image, {"boxes": torch.tensor([[5.0, 10.0, 25.0, 22.0]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize("flip", [True, False])
def test_a_weak_view_moves_boxes_with_the_image(flip: bool) -> None:
    transform, moved = box_transform("weak", "augment", flip=flip), 0
    for seed in range(8):
        torch.manual_seed(seed)
        image, label = marked()
        pixels, found = transform_sample(transform, image, label)
        assert pixels.shape == image.shape
        (box,) = found["boxes"].round().int().tolist()
        white = pixels[0] > 127
        rows, columns = white.any(1).nonzero(), white.any(0).nonzero()
        seen = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        assert max(abs(a - b) for a, b in zip(seen, box, strict=True)) <= 1
        assert found["labels"].tolist() == [1]
        moved += box != [5, 10, 25, 22]
    assert moved > 1


def test_a_strong_view_is_a_function_of_the_generator_and_leaves_its_input() -> None:
    transform = box_transform("strong", "view", flip=True)
    image, _ = marked()
    before = image.clone()
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(transform_view(transform, image, "view"))
    assert torch.equal(image, before)
    assert torch.equal(views[0][0], views[1][0])
    assert not torch.equal(views[0][0], views[2][0])
    for view, affine in views:
        assert (view.shape, view.dtype) == (image.shape, torch.uint8)
        assert affine[:, :2].abs().tolist() == [[1, 0], [0, 1]]  # a flip or nothing
    bare, label = transform_sample(transform, image, None)
    assert (bare.shape, label) == (image.shape, None)


def test_colours_change_alone() -> None:
    image = torch.randint(256, (3, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(Colours(p=0.0, grey=0.0)(image), image)
    grey = Colours(p=0.0, grey=1.0)(image).float()
    assert torch.equal(grey[0], grey[1])
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    assert (grey[2] - luma).abs().max() <= 0.51
    torch.manual_seed(0)
    even = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    brightness = [int(Colours(p=1.0, grey=0.0)(even)[0, 0, 0]) for _ in range(40)]
    assert 60 <= min(brightness) < 85 < 115 < max(brightness) <= 140
    two = torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert torch.equal(Colours()(two), two)


def test_a_blur_keeps_what_is_even_and_spreads_a_point() -> None:
    even = torch.full((3, 9, 11), 77, dtype=torch.uint8)
    assert torch.equal(Blur(p=1.0)(even), even)
    assert torch.equal(Blur(p=0.0)(marked()[0]), marked()[0])
    point = torch.zeros(3, 21, 21, dtype=torch.uint8)
    point[:, 10, 10] = 255
    spread = Blur(p=1.0, least=1.0, most=1.0)(point).float()
    assert spread[0, 10, 10] == pytest.approx(255 / (2 * torch.pi), abs=1.5)
    assert spread[0, 10, 11] == pytest.approx(255 / (2 * torch.pi) * 0.6065, abs=1)
    assert torch.equal(spread[0], spread[0].T)


def test_cut_out_parts_have_the_shares_that_are_asked_for() -> None:
    image = torch.full((3, 60, 80), 7, dtype=torch.uint8)
    cut = CutOut(((1.0, (0.1, 0.1), (1.0, 1.0)),))(image)
    assert (image == 7).all()
    changed = (cut != 7).any(0)
    assert changed.float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(CutOut(())(image), image)


def test_another_word_is_refused() -> None:
    with pytest.raises(UserError, match=r'unknown data\.augment "weka": did you mean "weak"'):
        box_transform("weka", "data.augment", flip=True)
