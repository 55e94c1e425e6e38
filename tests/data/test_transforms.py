"""Named augmentations."""

import pytest
import torch

from dafw.data.transforms import AUGMENTATIONS, flip_crop, named_augmentation, named_view, strong, weak
from dafw.errors import UserError


def image(height: int = 40, width: int = 52) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
@pytest.mark.parametrize("shape", [(40, 52), (32, 32), (20, 20)])
def test_result_is_uint8_of_the_size_asked_for(name: str, shape: tuple[int, int]) -> None:
    augmentation = named_augmentation(name, 32)
    assert augmentation is not None
    result = augmentation(image(*shape))
    assert result.shape == (3, 32, 32)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("name", ["flip_crop", "weak", "strong"])
def test_the_generator_of_torch_decides_alone(name: str) -> None:
    augmentation = named_view(name, 32)

    def draw(seed: int) -> list[bytes]:
        torch.manual_seed(seed)
        return [augmentation(image()).numpy().tobytes() for _ in range(5)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert len(set(draw(3))) > 1


@pytest.mark.parametrize("make", [flip_crop, weak])
def test_without_flips_left_stays_left(make) -> None:
    half = torch.zeros(3, 32, 32, dtype=torch.uint8)
    half[:, :, :16] = 255
    torch.manual_seed(0)
    still = [make(32, flip=False)(half) for _ in range(30)]
    assert all(x[..., :16].float().mean() >= x[..., 16:].float().mean() for x in still)
    flipped = [make(32)(half) for _ in range(30)]
    assert any(x[..., :16].float().mean() < x[..., 16:].float().mean() for x in flipped)


def test_weak_shifts_by_at_most_an_eighth() -> None:
    dot = torch.zeros(3, 32, 32, dtype=torch.uint8)
    dot[:, 15:17, 15:17] = 255
    torch.manual_seed(0)
    rows = {int(weak(32, flip=False)(dot)[0].any(1).nonzero().min()) - 15 for _ in range(200)}
    assert min(rows) == -4
    assert max(rows) == 4


def test_strong_changes_colours_which_weak_does_not() -> None:
    grey = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    assert all((weak(32)(grey) == 100).all() for _ in range(20))
    assert any(not (strong(32)(grey) == 100).all() for _ in range(20))


def test_none_is_no_augmentation() -> None:
    assert named_augmentation("none", 32) is None


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r'unknown augmentation "stong": did you mean "strong"'):
        named_augmentation("stong", 32)


def test_a_view_cannot_be_none() -> None:
    with pytest.raises(UserError, match='"none"'):
        named_view("none", 32)
