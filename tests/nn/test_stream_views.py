"""Random views of images at test time."""

import torch

from dafw.nn.stochastic_restore import restore_at_random
from dafw.nn.stream_views import TestTimeViews

IMAGES = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NONE = dict.fromkeys(
    ("brightness", "contrast", "saturation", "hue", "gamma", "degrees", "shift", "zoom", "blur", "flip", "noise"), 0.0
)


def test_views_are_a_function_of_seed_step_and_name() -> None:
    views = TestTimeViews()
    one = views(IMAGES, 1, 2, "view")
    assert torch.equal(one, views(IMAGES, 1, 2, "view"))
    for seed, step, name in ((2, 2, "view"), (1, 3, "view"), (1, 2, "other")):
        assert not torch.allclose(one, views(IMAGES, seed, step, name))
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert float((one - IMAGES).abs().mean()) > 0.01


def test_views_without_any_change_are_the_images() -> None:
    torch.testing.assert_close(TestTimeViews(**NONE)(IMAGES, 1, 2, "view"), IMAGES, rtol=0, atol=1e-6)


def test_views_are_mirrored() -> None:
    found = TestTimeViews(**{**NONE, "flip": 1.0})(IMAGES, 1, 2, "view")
    torch.testing.assert_close(found, IMAGES.flip(3), rtol=0, atol=1e-6)


def test_a_shift_moves_by_its_share_of_the_side() -> None:
    ramp = torch.linspace(0.2, 0.8, 16, dtype=torch.float64).expand(200, 1, 16, 16).contiguous()
    found = TestTimeViews(**{**NONE, "shift": 0.125})(ramp, 1, 2, "view")[:, 0, 8, 8]
    moved = (found - ramp[:, 0, 8, 8]) / (ramp[0, 0, 0, 1] - ramp[0, 0, 0, 0])
    assert 1.8 < float(moved.abs().max()) <= 2.0


def test_images_of_one_channel() -> None:
    assert TestTimeViews()(IMAGES[:, :1].float(), 1, 2, "view").shape == (4, 1, 12, 10)


def test_restores_draw_a_share_that_is_a_function_of_seed_and_step() -> None:
    def restored(rate: float, seed: int = 0, step: int = 0) -> torch.Tensor:
        weights = [torch.ones(50, 40), torch.ones(2000)]
        restore_at_random(((one, torch.zeros_like(one)) for one in weights), rate, seed, step)
        return torch.cat([one.flatten() for one in weights])

    assert abs(float(1 - restored(0.1).mean()) - 0.1) < 0.02
    assert bool((restored(0.0) == 1).all())
    assert bool((restored(1.0) == 0).all())
    assert torch.equal(restored(0.1), restored(0.1))
    assert not torch.equal(restored(0.1), restored(0.1, step=1))
    assert not torch.equal(restored(0.1)[:2000], restored(0.1)[2000:])
