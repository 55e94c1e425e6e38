"""Sinkhorn: marginals, POT's plans, the rows that are left out, small epsilons in float32."""

import warnings
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from dafw.losses.transport import sinkhorn

N, M = 7, 5
RELAXED = [(None, None), (0.5, 0.5), (0.3, 2.0), (None, 0.4), (0.4, None)]


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A cost in [-1, 1] and two marginals."""
    generator = torch.Generator().manual_seed(0)
    cost = 2 * torch.rand(N, M, generator=generator, dtype=torch.float64) - 1
    rows, columns = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.2 for size in (N, M))
    return cost.to(dtype), (rows / rows.sum()).to(dtype), (columns / columns.sum()).to(dtype)


def test_marginals_of_a_balanced_plan() -> None:
    cost, rows, columns = problem()
    found = sinkhorn(cost, rows, columns, epsilon=0.1, iterations=400)
    torch.testing.assert_close(found.plan.sum(1), rows, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.plan.sum(0), columns, rtol=1e-12, atol=1e-12)
    scaled = (found.rows[:, None] - cost / 0.1 + found.columns).exp()
    torch.testing.assert_close(scaled, found.plan)
    early = sinkhorn(cost, epsilon=0.1, iterations=1).plan
    torch.testing.assert_close(early.sum(0), torch.full((M,), 1 / M, dtype=torch.float64))
    assert (early.sum(1) - 1 / N).abs().max() > 1e-3


@pytest.mark.parametrize(("relax_rows", "relax_columns"), RELAXED)
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_against_pot(relax_rows: float | None, relax_columns: float | None, epsilon: float) -> None:
    cost, rows, columns = problem()
    plan = sinkhorn(
        cost,
        rows,
        columns,
        epsilon=epsilon,
        iterations=3000,
        relax_rows=relax_rows,
        relax_columns=relax_columns,
    ).plan
    arrays: Any = rows.numpy(), columns.numpy(), cost.numpy()
    if relax_rows is None and relax_columns is None:
        expected = ot.sinkhorn(*arrays, epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=10**5)
    else:
        relaxed = tuple(float("inf") if relax is None else relax for relax in (relax_rows, relax_columns))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the entropy's reference is 1
            expected = ot.unbalanced.sinkhorn_knopp_unbalanced(
                *arrays, epsilon, relaxed, reg_type="entropy", stopThr=1e-15, numItermax=10**5
            )
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-8, atol=1e-8)


def objective(plan: Tensor, epsilon: float, relax: float) -> Tensor:
    """What the unbalanced plan minimises."""
    cost, rows, columns = problem()
    total = (plan * cost).sum() + epsilon * (plan * (plan.log() - 1)).sum()
    for sums, given in ((plan.sum(1), rows), (plan.sum(0), columns)):
        total = total + relax * (sums * (sums / given).log() - sums + given).sum()
    return total


def test_an_unbalanced_plan_is_a_minimum() -> None:
    cost, rows, columns = problem()
    settings = {"epsilon": 0.1, "relax_rows": 0.5, "relax_columns": 0.5}
    plan = sinkhorn(cost, rows, columns, iterations=2000, **settings).plan.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(plan, 0.1, 0.5), plan)
    assert gradient.abs().max() < 1e-9
    assert (plan.sum(1) - rows).abs().max() > 1e-2
    loose = {"epsilon": 0.1, "relax_rows": 1e6, "relax_columns": 1e6}
    tight = sinkhorn(cost, rows, columns, epsilon=0.1, iterations=400).plan
    torch.testing.assert_close(sinkhorn(cost, rows, columns, iterations=400, **loose).plan, tight, rtol=1e-4, atol=1e-6)


def test_an_iteration_contracts() -> None:
    cost, rows, columns = problem()
    settings = {"epsilon": 0.1, "relax_rows": 0.5, "relax_columns": 0.3}
    exact = sinkhorn(cost, rows, columns, iterations=3000, **settings).columns
    factor = 0.5 / 0.6 * 0.3 / 0.4
    errors = [
        float((sinkhorn(cost, rows, columns, iterations=i, **settings).columns - exact).abs().max()) for i in (1, 2, 5)
    ]
    assert 0 < errors[1] <= factor * errors[0] * (1 + 1e-9)
    assert 0 < errors[2] <= factor**3 * errors[1] * (1 + 1e-9)


def test_three_iterations_are_those_of_alternating_normalisation() -> None:
    scores = torch.randn(N, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = (scores / 0.5).exp()
    for _ in range(3):
        plan = plan / plan.sum(0) / M
        plan = plan / plan.sum(1, keepdim=True) / N
    found = sinkhorn(-scores.T, epsilon=0.5, iterations=3).plan.T
    torch.testing.assert_close(found, plan)


@pytest.mark.parametrize(("relax_rows", "relax_columns"), RELAXED)
def test_rows_without_mass_are_not_there(relax_rows: float | None, relax_columns: float | None) -> None:
    cost, rows, columns = problem()
    settings: dict[str, Any] = {
        "epsilon": 0.1,
        "iterations": 50,
        "relax_rows": relax_rows,
        "relax_columns": relax_columns,
    }
    kept = torch.tensor([0, 2, 3, 6])
    mass = torch.zeros_like(rows).index_copy(0, kept, rows[kept])
    found, expected = (
        sinkhorn(cost, mass, columns, **settings),
        sinkhorn(cost[kept], rows[kept], columns, **settings),
    )
    torch.testing.assert_close(found.plan[kept], expected.plan)
    torch.testing.assert_close(found.columns, expected.columns)
    assert (found.plan.index_fill(0, kept, 0) == 0).all()


@pytest.mark.parametrize(("relax_rows", "relax_columns"), RELAXED)
def test_small_epsilons_in_float32(relax_rows: float | None, relax_columns: float | None) -> None:
    settings: dict[str, Any] = {
        "epsilon": 2e-3,
        "iterations": 100,
        "relax_rows": relax_rows,
        "relax_columns": relax_columns,
    }
    assert problem(torch.float32)[0].div(-2e-3).exp().isinf().any()
    found = sinkhorn(*problem(torch.float32), **settings).plan
    torch.testing.assert_close(found.double(), sinkhorn(*problem(), **settings).plan, rtol=2e-3, atol=1e-5)


def test_half_precision() -> None:
    cost, rows, columns = problem(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        plan = sinkhorn(cost, rows, columns, epsilon=0.1, iterations=50).plan
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan.sum(0), columns.float())


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0, "iterations": 3}, {"epsilon": 0.1, "iterations": 0}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        sinkhorn(problem()[0], **wrong)
