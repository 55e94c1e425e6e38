"""The slope of the cross-entropy in the scale of the logits, and IRM's penalty."""

import pytest
import torch
from torch.nn import functional as F

from dafw.losses.invariance import invariance_penalty, scale_gradient


def rows(n: int = 9, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


def test_the_slope_is_that_of_the_scaled_loss() -> None:
    logits, labels = rows()
    logits.requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(scale * logits, labels), scale, create_graph=True)
    torch.testing.assert_close(scale_gradient(logits, labels), slope)
    (expected,) = torch.autograd.grad(slope, logits)
    (found,) = torch.autograd.grad(scale_gradient(logits, labels), logits)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda z: invariance_penalty(z, labels), logits)


def test_the_penalty_is_of_two_halves() -> None:
    logits, labels = rows()
    halves = [scale_gradient(logits[start::2], labels[start::2]) for start in (0, 1)]
    torch.testing.assert_close(invariance_penalty(logits, labels), halves[0] * halves[1])
    twice = logits.repeat_interleave(2, 0), labels.repeat_interleave(2)
    torch.testing.assert_close(invariance_penalty(*twice), scale_gradient(logits, labels) ** 2)


def test_no_slope_where_no_scale_helps() -> None:
    logits = torch.zeros(6, 3, dtype=torch.float64)
    assert invariance_penalty(logits, torch.tensor([0, 1, 2, 0, 1, 2])) == 0
    right = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert scale_gradient(right, torch.tensor([0, 1])) < 0 < scale_gradient(right, torch.tensor([1, 0]))


def test_halves_that_disagree_make_it_negative() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert invariance_penalty(logits, torch.tensor([0, 1])) < 0


def test_autocast_does_not_reach_it() -> None:
    logits, labels = rows()
    expected = invariance_penalty(logits.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(invariance_penalty(logits.float(), labels), expected)
        assert invariance_penalty(logits.bfloat16(), labels).dtype == torch.float32


def test_one_row_has_no_two_halves() -> None:
    logits, labels = rows(1)
    with pytest.raises(ValueError, match="not 1 rows"):
        invariance_penalty(logits, labels)
