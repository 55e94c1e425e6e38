import math

import pytest
import torch
from torch import Tensor

from dafw.losses.unknown import unknown_bce


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


@pytest.mark.parametrize("boundary", [0.5, 0.2])
def test_against_a_loop(logits: Tensor, boundary: float) -> None:
    total = 0.0
    for row in logits.tolist():
        powers = [math.exp(value) for value in row]
        unknown = powers[-1] / sum(powers)
        total -= boundary * math.log(unknown) + (1 - boundary) * math.log(1 - unknown)
    assert unknown_bce(logits, boundary).item() == pytest.approx(total / 7, rel=1e-12)


@pytest.mark.parametrize("boundary", [0.5, 0.2])
def test_at_the_boundary_it_is_least_and_has_no_gradient(boundary: float) -> None:
    """One logit of log t / (1 - t) beside K of log 1 / K has the probability t."""
    known = torch.full((3, 4), -math.log(4), dtype=torch.float64)
    unknown = torch.full((3, 1), math.log(boundary / (1 - boundary)), dtype=torch.float64)
    logits = torch.cat([known, unknown], 1).requires_grad_()
    loss = unknown_bce(logits, boundary)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-15
    entropy = -boundary * math.log(boundary) - (1 - boundary) * math.log(1 - boundary)
    assert loss.item() == pytest.approx(entropy, rel=1e-12)
    for change in (-0.1, 0.1):
        assert unknown_bce(torch.cat([known, unknown + change], 1), boundary) > loss


def test_the_gradient_is_the_distance_to_the_boundary(logits: Tensor) -> None:
    logits.requires_grad_()
    unknown_bce(logits, 0.3).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, -1], (logits.detach().softmax(1)[:, -1] - 0.3) / 7)
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(7, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: unknown_bce(x, 0.3), logits)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[0.0, 1e4], [1e4, 0.0]], requires_grad=True)
    loss = unknown_bce(logits)
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.25, 0.25], [0.25, -0.25]]
    assert unknown_bce(logits.detach().bfloat16()).dtype == torch.float32


def test_known_classes_and_rows_have_no_order(logits: Tensor) -> None:
    torch.testing.assert_close(unknown_bce(logits[:, [2, 0, 3, 1, 4]].flip(0)), unknown_bce(logits))
    torch.testing.assert_close(unknown_bce(logits + 5), unknown_bce(logits))
