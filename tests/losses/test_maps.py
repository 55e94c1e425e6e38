"""Losses of pixels: their values at known predictions, padding, the authors' vectors, and any number of ranks."""

import math
from collections.abc import Callable

import pytest
import torch
from golden_vectors import golden
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.maps import (
    domain_loss,
    mean_over_places,
    normalised_entropy,
    pixel_information,
    self_information,
)
from dafw.nn.map_critic import MapCritic
from dafw.optim.schedules import Polynomial
from dafw.problems import MaskOutputs, Segmentation


def tensors(path: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in golden(path).items()}


def test_self_information_is_that_of_the_authors() -> None:
    known = tensors("advent/entropy_and_disc.npz")
    logits = known["logits"].requires_grad_()
    torch.testing.assert_close(self_information(logits), known["self_info"], rtol=1e-5, atol=1e-6)
    loss = normalised_entropy(logits)
    torch.testing.assert_close(loss, known["entropy_loss"])
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, known["grad"], rtol=1e-4, atol=1e-8)


def test_the_critic_and_its_loss_are_those_of_the_authors() -> None:
    """Their source is 0, ours is 1."""
    known = tensors("advent/entropy_and_disc.npz")
    logits, label = known["logits"], known["label"]
    critic = MapCritic(logits.shape[1], known["D_0_weight"].shape[0], 5)
    weights = {f"convolutions.{i}.{key}": known[f"D_{2 * i}_{key}"] for i in range(5) for key in ("weight", "bias")}
    critic.load_state_dict(weights)
    scores = critic(self_information(logits))
    torch.testing.assert_close(scores, known["d_out"].squeeze(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(domain_loss(-scores, True), known["adv_loss_fool"])
    terms = Segmentation().terms(MaskOutputs(logits, logits), label.to(torch.uint8))
    torch.testing.assert_close(terms["supervised"], known["ce"])


def test_the_rate_is_that_of_the_authors() -> None:
    known = golden("advent/entropy_and_disc.npz")["lr_poly"]
    schedule = Polynomial(power=0.9, steps=250_000)
    for step, rate in zip((0, 1000, 120_000), known, strict=True):
        assert math.isclose(schedule(0.5, step), rate / known[0], rel_tol=1e-12)


def test_the_information_of_pixels_is_that_of_rows() -> None:
    """The reference adds 1e-6 in the logarithm of the mean."""
    known = tensors("paretoda/tcm.npz")
    logits = known["logits"].requires_grad_()
    loss = pixel_information(logits[:, :, None, None])
    torch.testing.assert_close(loss, known["tcm"], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, known["grad"], rtol=1e-3, atol=1e-5)


def test_polynomial() -> None:
    assert [Polynomial(power=2.0)(p, 7) for p in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.0]
    assert [Polynomial(power=1.0, steps=4)(0.9, step) for step in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_an_undecided_pixel_has_entropy_1_and_a_sure_one_0(scale: float) -> None:
    logits = torch.tensor([scale, 0, 0, 0])[None, :, None, None].requires_grad_()
    loss = normalised_entropy(logits)
    torch.testing.assert_close(loss, torch.tensor(float(scale == 0)))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def logits_with_padding() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    valid = torch.zeros(3, 6, 8, dtype=torch.bool)
    valid[0, :6, :5] = valid[1, :4, :8] = True  # the third image has no pixel
    return torch.randn(3, 4, 6, 8, dtype=torch.float64), valid


LOSSES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "normalised_entropy": normalised_entropy,
    "pixel_information": pixel_information,
    "vanilla": lambda x, valid: domain_loss(x[:, 0], True, valid) - domain_loss(x[:, 1], False, valid),
    "least_squares": lambda x, valid: domain_loss(x[:, 0], False, valid, "least_squares"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_padding_does_not_count(name: str) -> None:
    logits, valid = logits_with_padding()
    logits = logits.masked_fill(~valid[:, None], math.nan).requires_grad_()
    loss = LOSSES[name](logits.nan_to_num(7.0), valid)
    own = logits.detach().movedim(1, -1)[valid].t()[None, :, None]  # all pixels in one row
    torch.testing.assert_close(loss, LOSSES[name](own, None))
    assert not torch.autograd.grad(loss, logits)[0].movedim(1, -1)[~valid].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_pixel_is_finite(name: str) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = LOSSES[name](logits, torch.zeros(2, 4, 4, dtype=torch.bool))
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_half_precision_is_widened() -> None:
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    assert self_information(logits).dtype == mean_over_places(logits[:, 0]).dtype == torch.float32


def test_least_squares_are_distances() -> None:
    scores = torch.tensor([[[0.0, 2.0]]])
    assert domain_loss(scores, True, None, "least_squares") == 1
    assert domain_loss(scores, False, None, "least_squares") == 2
    torch.testing.assert_close(domain_loss(scores, True), F.softplus(-scores).mean())
