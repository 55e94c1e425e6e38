"""The one-vs-all losses against loops over rows and classes."""

import math

import pytest
import torch
from torch import Tensor

from dafw.losses.entropy import mean_entropy
from dafw.losses.one_vs_all import another_class, one_vs_all, this_class


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 4, 2, 2, 1, 3])


def by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """The definition, with softmaxes and one term at a time."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels.tolist(), strict=True):
        no = [-torch.log(torch.softmax(pair, 0)[0]) for pair in row]
        others = [value for k, value in enumerate(no) if k != label]
        total = total - torch.log(torch.softmax(row[label], 0)[1]) + torch.stack(others).max()
    return total / len(logits)


def test_value_and_gradient(logits: Tensor, labels: Tensor) -> None:
    ours, loop = logits.clone().requires_grad_(True), logits.clone().requires_grad_(True)
    value, expected = one_vs_all(ours, labels), by_hand(loop, labels)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(value, ours), torch.autograd.grad(expected, loop)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_only_the_own_and_the_hardest_other_classifier_learn(logits: Tensor, labels: Tensor) -> None:
    (gradient,) = torch.autograd.grad(one_vs_all(logits.requires_grad_(True), labels), logits)
    moved = gradient.abs().sum(2) > 0
    assert moved.sum(1).tolist() == [2] * 6
    assert moved.gather(1, labels[:, None]).all()
    own = gradient.gather(1, labels[:, None, None].expand(-1, 1, 2)).squeeze(1)
    assert (own[:, 1] < 0).all()  # descent raises "this class" of the own classifier
    assert (own[:, 0] > 0).all()


def test_numbers() -> None:
    """Two rows: -log 3/4 - log 1/2, and -log 1/5 - log 1/4."""
    p = torch.tensor([[3 / 4, 1 / 2, 1 / 3], [3 / 4, 1 / 5, 1 / 2]], dtype=torch.float64)
    logits = torch.stack([(1 - p).log(), p.log()], 2)
    expected = (-math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 5) - math.log(1 / 4)) / 2
    assert one_vs_all(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-12)


def test_target_entropy(logits: Tensor) -> None:
    """What is minimised on the target: a mean over rows and classes."""
    ours, loop = logits.clone().requires_grad_(True), logits.clone().requires_grad_(True)
    total = torch.zeros((), dtype=logits.dtype)
    for row in loop:
        for pair in row:
            p = torch.softmax(pair, 0)
            total = total - p[0] * torch.log(p[0]) - p[1] * torch.log(p[1])
    expected, value = total / 30, mean_entropy(ours)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, ours), torch.autograd.grad(expected, loop))


def test_another_class(logits: Tensor, labels: Tensor) -> None:
    expected = [float(torch.softmax(row[k], 0)[0]) for row, k in zip(logits, labels.tolist(), strict=True)]
    assert another_class(logits, labels).tolist() == pytest.approx(expected, rel=1e-12)
    assert this_class(logits)[0, 3] == logits[0, 3, 1] - logits[0, 3, 0]


def test_extreme_scores_and_a_single_class_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]], requires_grad=True)
    value = one_vs_all(logits, torch.tensor([0]))
    value.backward()
    assert value.item() == pytest.approx(4e4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    alone = torch.zeros(2, 1, 2, requires_grad=True)
    value = one_vs_all(alone, torch.tensor([0, 0]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert alone.grad is not None
    assert alone.grad.isfinite().all()


def test_half_precision_is_summed_in_single(logits: Tensor, labels: Tensor) -> None:
    assert one_vs_all(logits.bfloat16(), labels).dtype == torch.float32


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"\(N, K, 2\), not \(3, 4\)"):
        one_vs_all(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
