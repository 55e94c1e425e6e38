import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.losses.entropy import (
    certainty_weights,
    entropy,
    information_maximisation,
    mean_entropy,
    mutual_information,
)


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_against_numpy(logits: Tensor) -> None:
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    rows = -(p * np.log(p)).sum(1)
    marginal = -(p.mean(0) * np.log(p.mean(0))).sum()
    np.testing.assert_allclose(entropy(logits).numpy(), rows, rtol=1e-12)
    assert mean_entropy(logits).item() == pytest.approx(rows.mean(), rel=1e-12)
    assert mutual_information(logits).item() == pytest.approx(marginal - rows.mean(), rel=1e-12)
    assert information_maximisation(logits).item() == pytest.approx(rows.mean() - marginal, rel=1e-12)


def test_a_number_inside_the_logarithm(logits: Tensor) -> None:
    p = logits.softmax(1)
    rows = -(p * (p + 1e-2).log()).sum(1)
    marginal = -(p.mean(0) * (p.mean(0) + 1e-2).log()).sum()
    torch.testing.assert_close(entropy(logits, epsilon=1e-2), rows)
    torch.testing.assert_close(information_maximisation(logits, epsilon=1e-2), rows.mean() - marginal)


def test_any_leading_shape(logits: Tensor) -> None:
    torch.testing.assert_close(entropy(logits.expand(2, 3, 7, 5))[1, 2], entropy(logits))


def test_bounds() -> None:
    assert entropy(torch.zeros(1, 5)).item() == pytest.approx(math.log(5))
    assert entropy(torch.eye(5) * 1e4).tolist() == [0] * 5
    assert mutual_information(torch.eye(5) * 1e4).item() == pytest.approx(math.log(5))
    assert mutual_information(torch.zeros(3, 5)).item() == pytest.approx(0, abs=1e-6)
    assert mutual_information(torch.tensor([[1e4, 0.0]]).expand(3, 2)).item() == pytest.approx(0, abs=1e-6)


def test_invariances(logits: Tensor) -> None:
    for loss in (mean_entropy, information_maximisation):
        torch.testing.assert_close(loss(logits[torch.randperm(7)][:, torch.randperm(5)]), loss(logits))
        torch.testing.assert_close(loss(logits + 100), loss(logits))


def test_gradients_are_right_and_finite_for_certain_predictions(logits: Tensor) -> None:
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(mean_entropy, logits)
    assert torch.autograd.gradcheck(information_maximisation, logits)
    certain = (torch.eye(5) * 1e4).requires_grad_(True)
    information_maximisation(certain).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_single(logits: Tensor) -> None:
    assert information_maximisation(logits.bfloat16()).dtype == torch.float32


def test_certainty_weights(logits: Tensor) -> None:
    weights = certainty_weights(logits.requires_grad_(True))
    assert not weights.requires_grad
    assert weights.sum().item() == pytest.approx(7)
    expected = 1 + torch.exp(-entropy(logits.detach()))
    torch.testing.assert_close(weights / weights[0], expected / expected[0])
    torch.testing.assert_close(certainty_weights(torch.zeros(4, 3)), torch.ones(4))
    half = certainty_weights(torch.tensor([[1e4, 0.0], [0.0, 0.0]]).bfloat16())
    torch.testing.assert_close(half, torch.tensor([2.0, 1.5]) * 2 / 3.5)
