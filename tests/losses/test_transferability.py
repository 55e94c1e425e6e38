"""Transferability and its weights against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from dafw.losses.transferability import mean_one, transferability


@pytest.fixture
def scores() -> Tensor:
    return 2 * torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_against_a_loop(scores: Tensor, logits: Tensor, temperature: float) -> None:
    expected = []
    for score, row in zip(scores.tolist(), logits.tolist(), strict=True):
        powers = [math.exp(z / temperature) for z in row]
        p = [power / sum(powers) for power in powers]
        uncertainty = -sum(q * math.log(q) for q in p) / math.log(4)
        expected.append(1 / (1 + math.exp(-score)) - uncertainty)
    found = transferability(scores, logits, temperature=temperature)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert transferability(scores[:, None], logits, temperature=temperature).tolist() == found.tolist()
    assert (found.abs() <= 1).all()


def test_ends() -> None:
    """A sure prediction that looks like the source, and an unsure one that does not."""
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert transferability(torch.tensor([1e4, -1e4]), logits).tolist() == pytest.approx([1, -1])
    assert transferability(torch.zeros(2).bfloat16(), logits.bfloat16()).dtype == torch.float32


def test_mean_one_against_a_loop(scores: Tensor) -> None:
    values = scores.tolist()
    scaled = [(value - min(values)) / (max(values) - min(values)) for value in values]
    expected = [value / (sum(scaled) / 7) for value in scaled]
    found = mean_one(scores.requires_grad_(True))
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert not found.requires_grad


def test_mean_one_is_bounded_and_ignores_scale_and_shift(scores: Tensor) -> None:
    found = mean_one(scores)
    assert found.min() == 0
    assert found.max() <= 7
    assert found.mean().item() == pytest.approx(1)
    torch.testing.assert_close(mean_one(5 * scores - 3), found)
    outlier = torch.zeros(7)
    outlier[3] = 1e-3
    torch.testing.assert_close(mean_one(outlier), torch.eye(7)[3] * 7)


def test_equal_values_weigh_alike() -> None:
    assert mean_one(torch.full((5,), 0.1)).tolist() == [1] * 5
    assert mean_one(torch.tensor([0.3])).tolist() == [1]


def test_wrong_input(scores: Tensor, logits: Tensor) -> None:
    with pytest.raises(ValueError, match="K at least 2"):
        transferability(scores, logits[:, :1])
    with pytest.raises(ValueError, match=r"not \(6,\) and \(7, 4\)"):
        transferability(scores[1:], logits)
