"""Discrepancies averaged over all pairs of domains."""

from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from dafw.losses.coral import mean_and_covariance, pairwise_mean_and_covariance
from dafw.losses.mmd import GAMMAS, pairwise_mmd

losses = pytest.mark.parametrize("loss", [pairwise_mean_and_covariance, pairwise_mmd])


def domains(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in sizes]
    return [(1 + 0.3 * m) * draw + 0.4 * m for m, draw in enumerate(draws)]


def kernels(x: Tensor, y: Tensor) -> Tensor:
    squares = (x[:, None] - y).square().sum(-1)
    return torch.stack([torch.exp(-gamma * squares) for gamma in GAMMAS]).sum(0)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    return kernels(x, x).mean() + kernels(y, y).mean() - 2 * kernels(x, y).mean()


@pytest.mark.parametrize(("loss", "pair"), [(pairwise_mean_and_covariance, mean_and_covariance), (pairwise_mmd, mmd)])
def test_mean_over_pairs(loss, pair) -> None:
    found = domains(5, 6, 5)
    expected = torch.stack([pair(x, y) for x, y in combinations(found, 2)]).mean()
    torch.testing.assert_close(loss(found), expected, rtol=1e-9, atol=1e-12)


@losses
def test_the_order_of_the_domains_and_of_their_rows_does_not_matter(loss) -> None:
    found = domains(5, 5, 5)
    for order in permutations(range(3)):
        torch.testing.assert_close(loss([found[m] for m in order]), loss(found))
    torch.testing.assert_close(loss([found[0].flip(0), *found[1:]]), loss(found))


@losses
def test_nothing_of_one_domain_and_of_equal_ones(loss) -> None:
    (only,) = domains(6)
    assert loss([only]) == 0
    assert float(loss([only, only, only])) == pytest.approx(0, abs=1e-12)


@losses
def test_gradient(loss) -> None:
    found = [x.requires_grad_() for x in domains(3, 4)]
    assert torch.autograd.gradcheck(lambda *x: loss(x), found)


@losses
def test_autocast_does_not_reach_it(loss) -> None:
    found = [x.float() for x in domains(5, 6)]
    expected = loss(found)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(found), expected)
        assert loss([x.bfloat16() for x in found]).dtype == torch.float32
