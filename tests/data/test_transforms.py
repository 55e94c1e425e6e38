"""Named augmentations."""

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from dafw.data import transforms
from dafw.data.images import cut_middle
from dafw.data.transforms import (
    AUGMENTATIONS,
    affine,
    center_crop,
    domainbed,
    flip_crop,
    named_augmentation,
    named_view,
    strong,
    weak,
)
from dafw.data.whole_samples import transform_sample, transform_view
from dafw.errors import UserError
from dafw.problems import Segmentation


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


@pytest.mark.parametrize("name", ["domainbed", "flip_crop", "weak", "strong", "affine"])
def test_the_generator_of_torch_decides_alone(name: str) -> None:
    augmentation = named_view(name, 32)

    def draw(seed: int) -> list[bytes]:
        torch.manual_seed(seed)
        return [augmentation(image()).numpy().tobytes() for _ in range(5)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert len(set(draw(3))) > 1


@pytest.mark.parametrize("make", [domainbed, flip_crop, weak])
def test_without_flips_left_stays_left(make) -> None:
    half = torch.zeros(3, 32, 32, dtype=torch.uint8)
    half[:, :, :16] = 255
    torch.manual_seed(0)
    still = [make(32, flip=False)(half) for _ in range(30)]
    assert all(x[..., :16].float().mean() >= x[..., 16:].float().mean() for x in still)
    flipped = [make(32)(half) for _ in range(30)]
    assert any(x[..., :16].float().mean() < x[..., 16:].float().mean() for x in flipped)


@pytest.mark.parametrize("least", [0.08, 0.7])
@pytest.mark.parametrize("shape", [(256, 256), (100, 140)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int], least: float) -> None:
    torch.manual_seed(0)
    ours = torch.tensor([transforms._crop_and_flip(*shape, least=least) for _ in range(4000)], dtype=torch.float64)
    random = [RandomResizedCrop.get_params(torch.empty(3, *shape), [least, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor(random, dtype=torch.float64)
    quantiles = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    apart = ours[:, :4].quantile(quantiles, dim=0) - theirs.quantile(quantiles, dim=0)
    assert apart.abs().max() < 0.04 * max(shape)
    areas = [float((crops[:, 2] * crops[:, 3]).mean()) / (shape[0] * shape[1]) for crops in (ours, theirs)]
    assert areas[0] == pytest.approx(areas[1], abs=0.015)
    assert float(ours[:, 4].mean()) == pytest.approx(0.5, abs=0.03)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:4] <= torch.tensor(shape)).all()


@pytest.mark.parametrize("shape", [(10, 400), (400, 10), (1, 90)])
def test_a_crop_that_never_fits_is_the_middle(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    crops = {transforms._crop_and_flip(*shape, tries=0)[:4] for _ in range(5)}
    assert crops == {RandomResizedCrop.get_params(torch.empty(3, *shape), [1.0, 1.0], [3 / 4, 4 / 3])}


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_flip_crop_is_torchvisions_crop_scaled_and_mirrored(format: torch.memory_format) -> None:
    picture = image()[None].contiguous(memory_format=format)[0]
    for seed in range(20):
        torch.manual_seed(seed)
        top, left, height, width, mirrored = transforms._crop_and_flip(40, 52)
        expected = resized_crop(picture, top, left, height, width, [32, 32], antialias=True)
        torch.manual_seed(seed)
        got = flip_crop(32)(picture)
        assert (got.int() - (expected.flip(-1) if mirrored else expected).int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(40, 52), (39, 33), (32, 32)])
def test_center_crop_is_the_middle_that_evaluation_sees_or_its_mirror_image(shape: tuple[int, int]) -> None:
    picture = image(*shape)
    middle = cut_middle(picture, 32)
    assert center_crop(32, flip=False)(picture).equal(middle)
    torch.manual_seed(0)
    mirrored = [not center_crop(32)(picture).equal(middle) for _ in range(200)]
    assert 70 < sum(mirrored) < 130
    assert all(x.equal(middle) or x.equal(middle.flip(-1)) for x in (center_crop(32)(picture) for _ in range(20)))


def test_weak_shifts_by_at_most_an_eighth() -> None:
    dot = torch.zeros(3, 32, 32, dtype=torch.uint8)
    dot[:, 15:17, 15:17] = 255
    torch.manual_seed(0)
    rows = {int(weak(32, flip=False)(dot)[0].any(1).nonzero().min()) - 15 for _ in range(200)}
    assert min(rows) == -4
    assert max(rows) == 4


def test_domainbed_changes_colours_and_makes_a_tenth_grey() -> None:
    ramp = torch.stack([torch.arange(100, dtype=torch.uint8).repeat(100, 1), *torch.full((2, 100, 100), 50).byte()])
    augmentation = domainbed(32, flip=False)
    torch.manual_seed(0)
    results = [augmentation(ramp).int() for _ in range(300)]
    grey = sum(bool((x[0] == x[1]).all() and (x[1] == x[2]).all()) for x in results)
    assert 15 <= grey <= 50
    assert sum(bool((x[1] == 50).all()) for x in results) < 30
    areas = [height * width / 10_000 for _, _, height, width, _ in draws(0.7)]
    assert min(areas) > 0.68
    assert min(areas) < 0.75 < 0.9 < max(areas)


def draws(least: float) -> list[tuple[int, int, int, int, bool]]:
    return [transforms._crop_and_flip(100, 100, least=least) for _ in range(300)]


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


def test_affine_moves_masks_and_says_where_a_view_took_each_pixel() -> None:
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    mask[4:20, 10:28] = 1
    square = (255 * mask).expand(3, 32, 32)
    for seed in range(20):
        torch.manual_seed(seed)
        moved, label = transform_sample(affine(32), square, mask)
        torch.manual_seed(seed)
        view, where = transform_view(affine(32), square, "the view")
        assert torch.equal(moved, view)
        carried = Segmentation().carry(mask[None], where[None], (32, 32))[0]
        bright = view[0].float() > view[0].max() / 2
        for found in (label, carried):
            assert set(found.unique().tolist()) <= {0, 1, 255}
            both, either = (found == 1) & bright, (found == 1) | bright
            assert both.sum() > 0.85 * either.sum()
