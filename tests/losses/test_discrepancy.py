"""Two heads' discrepancy, and the balance of the predicted classes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.losses.discrepancy import class_balance, classifier_discrepancy


@pytest.fixture
def heads() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    a, b = 2 * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    return a, b


def test_against_numpy(heads: tuple[Tensor, Tensor]) -> None:
    p, q = (np.exp(h.numpy()) / np.exp(h.numpy()).sum(1, keepdims=True) for h in heads)
    assert classifier_discrepancy(*heads).item() == pytest.approx(np.abs(p - q).mean(), rel=1e-12)
    assert class_balance(heads[0]).item() == pytest.approx(-np.log(p.mean(0) + 1e-6).mean(), rel=1e-12)


def test_the_discrepancy_is_a_distance(heads: tuple[Tensor, Tensor]) -> None:
    a, b = heads
    assert classifier_discrepancy(a, a + 5).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(classifier_discrepancy(a, b), classifier_discrepancy(b, a))
    assert classifier_discrepancy(torch.eye(4) * 1e4, torch.eye(4).roll(1, 0) * 1e4).item() == 0.5


def test_gradients(heads: tuple[Tensor, Tensor]) -> None:
    a, b = (head.requires_grad_(True) for head in heads)
    assert torch.autograd.gradcheck(classifier_discrepancy, (a, b))
    assert torch.autograd.gradcheck(class_balance, a)


def test_balance_is_least_for_equally_frequent_classes(heads: tuple[Tensor, Tensor]) -> None:
    least = class_balance(torch.eye(4) * 1e4).item()
    assert least == pytest.approx(math.log(4), rel=1e-4)
    assert class_balance(torch.zeros(3, 4)).item() == pytest.approx(least)
    assert class_balance(heads[0]).item() > least
    collapsed = class_balance(torch.eye(4)[:1].expand(5, 4) * 1e4)
    assert least < collapsed.item() < math.inf


def test_half_precision_logits_are_summed_in_single(heads: tuple[Tensor, Tensor]) -> None:
    a, b = (head.bfloat16() for head in heads)
    assert classifier_discrepancy(a, b).dtype == class_balance(a).dtype == torch.float32
