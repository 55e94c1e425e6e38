"""The terms of UDIM's inconsistency against reference vectors and against gradients taken row by row."""

import math
from typing import Any, Literal

import pytest
import torch
from golden_vectors import golden
from numpy.testing import assert_allclose
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.inconsistency import (
    GradientMoments,
    last_layer_moments,
    mean_square,
    split_style,
    uphill_step,
    variance_mismatch,
)


def moments_of(gradients: Tensor) -> GradientMoments:
    return GradientMoments(gradients.mean(0), gradients.square().mean(0))


def test_terms_of_given_gradients() -> None:
    arrays = {key: torch.tensor(value) for key, value in golden("udim/inconsistency_terms.npz").items()}
    clean, perturbed = (moments_of(arrays[key].flatten(1)) for key in ("g_origin", "g_syn"))
    exact: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
    assert_allclose(clean.square - clean.mean.square(), arrays["var_origin"], **exact)
    assert_allclose(perturbed.square - perturbed.mean.square(), arrays["var_syn_about_own_mean"], **exact)
    assert_allclose(variance_mismatch(clean, perturbed, "clean"), arrays["variance_penalty_code"], **exact)
    assert_allclose(variance_mismatch(clean, perturbed, "own"), arrays["variance_penalty_own_mean"], **exact)
    assert_allclose(mean_square(perturbed, bias=False), arrays["norm_penalty_code"], **exact)


def batch(rows: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs, labels, weights and bias of a linear layer, and its logits."""
    torch.manual_seed(1)
    z, w, b = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((rows, 4), (3, 4), (3,)))
    return z, torch.arange(rows) % 3, w, b, F.linear(z, w, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_moments_are_those_of_the_rows_gradients(bias: bool, smoothing: float) -> None:
    z, y, w, b, logits = batch()
    found = last_layer_moments(z, logits, y, bias=bias, label_smoothing=smoothing)
    rows = []
    for i in range(len(y)):
        loss = F.cross_entropy(F.linear(z[i : i + 1], w, b), y[i : i + 1], label_smoothing=smoothing)
        of_w, of_b = torch.autograd.grad(loss, [w, b])
        rows.append(torch.cat([of_w, of_b[:, None]], 1) if bias else of_w)
    torch.testing.assert_close(found, moments_of(torch.stack(rows)))
    whole = torch.autograd.grad(F.cross_entropy(F.linear(z, w, b), y, label_smoothing=smoothing), w)[0]
    torch.testing.assert_close(found.mean[:, :4], whole, msg="the mean gradient is that of the batch")
    squares = torch.stack(rows).square()
    expected = squares[..., :4].mean() + squares[..., 4:].mean() if bias else squares.mean()
    torch.testing.assert_close(mean_square(found, bias=bias), expected)


def test_gradients_reach_inputs_and_logits() -> None:
    z, y, w, b, _ = batch()

    def value(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        here = last_layer_moments(z, F.linear(z, w, b), y)
        there = last_layer_moments(z.flip(0) * 1.5, F.linear(z.flip(0) * 1.5, w, b), y)
        return variance_mismatch(here, there) + mean_square(there)

    assert torch.autograd.gradcheck(value, (z, w, b))


@pytest.mark.parametrize("centre", ["own", "clean"])
def test_properties(centre: Literal["own", "clean"]) -> None:
    z, y, w, b, logits = batch(dtype=torch.float32)
    here = last_layer_moments(z, logits, y)
    assert variance_mismatch(here, last_layer_moments(z.clone(), logits.clone(), y), centre).item() == 0
    further = last_layer_moments(2 * z, F.linear(2 * z, w, b), y)
    assert variance_mismatch(here, further, centre) > 0
    order = torch.randperm(len(y))
    shuffled = last_layer_moments(z[order], logits[order], y[order])
    torch.testing.assert_close(shuffled, here)


def test_in_sixteen_bits_moments_are_full() -> None:
    z, y, _, _, logits = batch(dtype=torch.float32)
    expected = last_layer_moments(z.bfloat16().float(), logits.bfloat16().float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(last_layer_moments(z.bfloat16(), logits.bfloat16(), y), expected)


def test_lengths_of_a_step() -> None:
    slope = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    per_image, per_pixel = uphill_step(slope, 0.7), uphill_step(slope, 0.7, "pixel")
    torch.testing.assert_close(per_image.flatten(1).square().mean(1).sqrt(), torch.full((5,), 0.7).double())
    torch.testing.assert_close(per_image.flatten(1).norm(dim=1), torch.full((5,), 0.7 * math.sqrt(18)).double())
    torch.testing.assert_close(per_pixel.square().mean(0).sqrt(), torch.full((2, 3, 3), 0.7).double())
    torch.testing.assert_close(F.normalize(slope, dim=0) * 10, uphill_step(slope, 10 / math.sqrt(5), "pixel"))
    torch.testing.assert_close(per_image.norm(), per_pixel.norm(), msg="one mean square whatever is scaled")
    assert torch.all(per_image * slope >= 0)
    assert torch.equal(uphill_step(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))


def test_a_style_is_what_rebuilds_the_image() -> None:
    arrays = {key: torch.tensor(value) for key, value in golden("udim/step_advstyle_pooled.npz").items()}
    mean, deviation, normed = split_style(arrays["x"])
    torch.testing.assert_close(normed * deviation + mean, arrays["x"])
    for found, key in ((mean, "mu_before"), (deviation, "sig_before"), (normed, "x_normed")):
        assert_allclose(found, arrays[key], rtol=1e-7, atol=1e-9)
