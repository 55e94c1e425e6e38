import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.adversarial import domain_bce, margin_disparity


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_each_domain_counts_one_half(scores: Tensor) -> None:
    p = 1 / (1 + np.exp(-scores.numpy()))
    expected = 0.5 * (-np.log(p[:4]).mean() - np.log(1 - p[4:]).mean())
    assert domain_bce(scores, 4).item() == pytest.approx(expected, rel=1e-12)
    assert domain_bce(scores[:, None], 4).item() == pytest.approx(expected, rel=1e-12)


def test_weights_multiply_rows(scores: Tensor) -> None:
    weights = torch.rand(11, dtype=torch.float64)
    terms = F.binary_cross_entropy_with_logits(scores, (torch.arange(11) < 4).double(), reduction="none")
    expected = 0.5 * ((weights * terms)[:4].mean() + (weights * terms)[4:].mean())
    torch.testing.assert_close(domain_bce(scores, 4, weights), expected)
    torch.testing.assert_close(domain_bce(scores[:, None], 4, weights), expected)
    torch.testing.assert_close(domain_bce(scores, 4, torch.ones(11)), domain_bce(scores, 4))


def test_order_within_a_domain_does_not_matter_and_swapping_the_domains_negates_the_scores(scores: Tensor) -> None:
    order = torch.cat([torch.randperm(4), 4 + torch.randperm(7)])
    torch.testing.assert_close(domain_bce(scores[order], 4), domain_bce(scores, 4))
    torch.testing.assert_close(domain_bce(-scores.roll(7), 7), domain_bce(scores, 4))


def test_an_undecided_critic_has_log_2_and_extreme_scores_stay_finite() -> None:
    assert domain_bce(torch.zeros(5), 2).item() == pytest.approx(math.log(2))
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = domain_bce(scores, 1)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert scores.grad is not None
    assert scores.grad.tolist() == [-0.5, 0.5]
    half = domain_bce(torch.tensor([3.0, -3.0]).bfloat16(), 1)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("num_source", [0, 11, 12])
def test_both_domains_are_needed(scores: Tensor, num_source: int) -> None:
    with pytest.raises(ValueError, match="both domains need rows"):
        domain_bce(scores, num_source)


def test_one_score_per_row() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        domain_bce(torch.zeros(4, 2), 2)


@pytest.fixture
def heads() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits, critic = (torch.randn(7, 4, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    return logits.requires_grad_(True), critic.requires_grad_(True)


def test_margin_disparity_row_by_row_and_with_gradients_for_the_second_head_alone(heads: tuple[Tensor, Tensor]) -> None:
    logits, critic = heads
    q, labels = critic.softmax(1), logits.argmax(1)
    source = [-torch.log(q[i, labels[i]]) for i in range(3)]
    target = [-torch.log(1 - q[i, labels[i]]) for i in range(3, 7)]
    expected = 2.5 * sum(source, torch.zeros(())) / 3 + sum(target, torch.zeros(())) / 4
    found = margin_disparity(logits, critic, 3, margin=2.5)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert logits.grad is None
    assert critic.grad is not None
    (gradient,) = torch.autograd.grad(expected, critic)
    torch.testing.assert_close(critic.grad, gradient)


def test_margin_disparity_is_least_for_a_head_that_follows_on_the_source_and_leaves_on_the_target() -> None:
    logits = torch.eye(4) * 50
    assert margin_disparity(logits, logits * torch.tensor([1.0, 1, -1, -1])[:, None], 2).item() < 1e-6
    assert margin_disparity(logits, logits, 2).item() == pytest.approx(50 - math.log(3), rel=1e-5)


def test_margin_disparity_of_extreme_scores_stays_finite() -> None:
    logits = torch.eye(2) * 1e4
    critic = (logits * torch.tensor([[-1.0], [1.0]])).requires_grad_(True)
    loss = margin_disparity(logits, critic, 1)
    loss.backward()
    assert loss.item() == pytest.approx(5e4)
    assert critic.grad is not None
    assert critic.grad.abs().max() == 4
    assert margin_disparity(logits, critic.bfloat16(), 1).dtype == torch.float32


@pytest.mark.parametrize("num_source", [0, 7])
def test_margin_disparity_needs_both_domains(heads: tuple[Tensor, Tensor], num_source: int) -> None:
    with pytest.raises(ValueError, match="both domains need rows"):
        margin_disparity(*heads, num_source)
