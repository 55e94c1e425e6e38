"""The preference programme: golden vectors, and what must hold of any solution."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from dafw.optim import pareto
from dafw.optim.pareto import GradientRows, Mode, choose_weights
from dafw.testing.steps import HostCalls, Operations

Array = NDArray[Any]


def products(gradients: Array, guidance: Array) -> Array:
    rows = np.vstack([gradients, guidance])
    return rows @ rows.T


def chosen(products: Any, *, guided: bool, mode: Mode = "paper") -> tuple[list[float], bool]:
    """The weights, and whether the programme has a solution."""
    found = choose_weights(torch.tensor(products), guided=torch.tensor(guided), mode=mode)
    assert found.weights.dtype == torch.float64
    return found.weights.tolist(), bool(found.feasible)


def simplex_weights(c: Array, q: Array, *, guided: bool) -> Array | None:
    """The weights on the simplex, or ``None`` if there is no solution."""
    weights, feasible = chosen(np.block([[c, q[:, None]], [q[None], np.ones((1, 1))]]), guided=guided)
    return np.array(weights) / len(q) if feasible else None


def descent(gradients: Array, guidance: Array) -> Array | None:
    return simplex_weights(gradients @ gradients.T, gradients @ guidance, guided=False)


def guided(gradients: Array, guidance: Array) -> Array | None:
    return simplex_weights(gradients @ gradients.T, gradients @ guidance, guided=True)


def random_cases(count: int, m: int = 3, size: int = 5) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(11)
    return [(rng.normal(size=(m, size)), rng.normal(size=size)) for _ in range(count)]


# ---- golden vectors


def test_golden_cases() -> None:
    cases = golden("paretoda/lp_cases.npz")
    m = cases["G"].shape[1]
    assert m >= 2
    for i, (gradients, guidance) in enumerate(zip(cases["G"], cases["g_val"], strict=True)):
        loss, eps = float(cases["loss_val"][i]), float(cases["eps"])
        weights, feasible = chosen(products(gradients, guidance), guided=loss > eps)
        assert (cases["mode"][i] == 0) == (loss > eps)
        assert feasible == bool(cases["solved"][i])
        expected = m * cases["alpha_ref"][i] if feasible else np.ones(m)
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-6)
        if feasible:
            np.testing.assert_allclose(weights, m * cases["alpha_highs"][i], rtol=1e-7, atol=1e-9)
        else:
            weights, _ = chosen(products(gradients, guidance), guided=loss > eps, mode="authors")
            assert weights == [float(m)] * m


# ---- any solution


@pytest.mark.parametrize("m", [2, 3, 4])
def test_weights_are_on_the_simplex_and_keep_every_bound(m: int) -> None:
    feasible = 0
    for gradients, guidance in random_cases(60, m):
        c, q = gradients @ gradients.T, gradients @ guidance
        w = simplex_weights(c, q, guided=True)
        assert w is not None  # the shortest vector of the convex hull keeps all bounds
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1)
        bounds = np.where(q > 0, -np.inf, q) if (q > 0).any() else np.zeros(m)
        if (q > 0).any():
            bounds[q.argmax()] = 0
        assert (c @ w >= bounds - 1e-6 * np.abs(c).max()).all()
        w = simplex_weights(c, q, guided=False)
        if w is not None:
            feasible += 1
            assert w.min() >= 0
            assert w.sum() == pytest.approx(1)
            assert (c @ w >= -1e-6 * np.abs(c).max()).all(), "an objective rises"
            assert w @ q >= min(q.max(), 0) - 1e-6 * np.abs(q).max()
    assert feasible > 30


def test_no_vertex_is_better() -> None:
    """The optimum of three weights, by trying every corner of the polygon that the bounds cut out of the simplex."""
    for gradients, guidance in random_cases(60):
        c, q = gradients @ gradients.T, gradients @ guidance
        rows = np.vstack([c, q, np.eye(3)])
        bounds = np.append(np.zeros(3), [min(q.max(), 0), 0, 0, 0])
        best = -np.inf
        for i in range(7):
            for j in range(i):
                system = np.vstack([rows[[i, j]], np.ones(3)])
                if abs(np.linalg.det(system)) > 1e-9:
                    corner = np.linalg.solve(system, np.append(bounds[[i, j]], 1))
                    if (rows @ corner >= bounds - 1e-9).all():
                        best = max(best, float(c.sum(0) @ corner))
        w = simplex_weights(c, q, guided=False)
        assert (w is None) == (best == -np.inf)
        if w is not None:
            assert float(c.sum(0) @ w) == pytest.approx(best, abs=1e-6)


def test_scale_does_not_matter() -> None:
    for gradients, guidance in random_cases(20):
        for scale in (1e-6, 1e3):
            for solve in (guided, descent):
                one, other = solve(gradients, guidance), solve(scale * gradients, scale * guidance)
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    np.testing.assert_allclose(one, other, atol=1e-6)
        one, other = descent(gradients, guidance), descent(5 * gradients, guidance)
        if one is not None and other is not None:
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_permutation_of_the_objectives_permutes_the_weights() -> None:
    order = [2, 0, 1]
    for gradients, guidance in random_cases(20):
        for solve in (guided, descent):
            one, other = solve(gradients, guidance), solve(gradients[order], guidance)
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                np.testing.assert_allclose(one[order], other, atol=1e-6)


def test_equal_gradients_give_the_same_direction_whatever_the_weights() -> None:
    gradient = np.arange(1.0, 6.0)
    for solve in (guided, descent):
        w = solve(np.tile(gradient, (3, 1)), gradient)
        assert w is not None
        np.testing.assert_allclose(w @ np.tile(gradient, (3, 1)), gradient)


def test_orthogonal_gradients_with_one_aligned_guidance_give_a_vertex() -> None:
    w = guided(np.eye(3), np.array([0.0, 0.0, 2.0]))
    assert w is not None
    np.testing.assert_allclose(w, [0, 0, 1], atol=1e-9)


def test_opposed_gradients_cancel() -> None:
    w = descent(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.zeros(2))
    assert w is not None
    np.testing.assert_allclose(w, [0.5, 0.5])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_falls_back(value: float) -> None:
    found = np.eye(4)
    found[1, 2] = value
    for asked in (True, False):
        assert chosen(found, guided=asked) == ([1.0, 1.0, 1.0], False)
        assert chosen(found, guided=asked, mode="authors") == ([3.0, 3.0, 3.0], False)


def test_gradients_of_zero_have_a_solution() -> None:
    for asked in (True, False):
        weights, feasible = chosen(np.zeros((4, 4)), guided=asked)
        assert feasible
        np.testing.assert_allclose(weights, 1.0, rtol=1e-15)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (4,)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="inner products"):
        chosen(np.zeros(shape), guided=False)


# ---- corners beside HiGHS


def unlike(kind: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Gradients of two to four objectives and of the guidance."""
    m = int(rng.integers(2, 5))
    gradients, guidance = rng.normal(size=(m, 5)), rng.normal(size=5)
    if kind == "alike":  # as from one network
        gradients += 3 * rng.normal(size=5)
        guidance += rng.normal() * gradients.mean(0)
    elif kind == "of unlike length":
        gradients *= 10 ** rng.uniform(-4, 0, size=(m, 1))
        guidance *= 10 ** rng.uniform(-4, 0)
    elif kind == "one zero":
        gradients[rng.integers(m)] = 0
    elif kind == "two equal":
        gradients[0] = gradients[-1]
    elif kind == "ties":
        gradients, guidance = rng.integers(-1, 2, (m, 3)).astype(float), rng.integers(-1, 2, 3).astype(float)
    return gradients, guidance


def by_highs(products: Array, *, guided: bool) -> tuple[float, Array | None]:
    """The best value and its weights by HiGHS, of a programme whose rows have length 1, as its tolerances expect."""
    m = len(products) - 1
    c, q = products[:m, :m], products[:m, m]
    largest = q.max()
    if not guided:
        gain, left, right = c.sum(0), np.vstack([c, q]), np.append(np.zeros(m), min(largest, 0.0))
    elif largest > 0:
        kept = (q <= 0) | (q == largest)
        gain, left, right = q, c[kept], q[kept].clip(max=0.0)
    else:
        gain, left, right = q, c, np.zeros(m)
    rows = left - right[:, None]
    rows = rows[np.abs(rows).max(1) > 0]
    rows, gain = rows / np.linalg.norm(rows, axis=1, keepdims=True), gain / (np.abs(gain).max() or 1.0)
    found = linprog(-gain, A_ub=-rows, b_ub=np.zeros(len(rows)), A_eq=np.ones((1, m)), b_eq=[1.0], method="highs")
    return (-np.inf, None) if found.x is None else (float(gain @ found.x), gain)


@pytest.mark.parametrize("kind", ["random", "alike", "of unlike length", "one zero", "two equal", "ties"])
def test_corners_are_as_good_as_what_highs_finds(kind: str) -> None:
    """In both programmes, and whether they have a solution."""
    rng, infeasible = np.random.default_rng(3), 0
    for _ in range(400):
        matrix = products(*unlike(kind, rng))
        for asked in (True, False):
            weights, feasible = chosen(matrix, guided=asked)
            best, gain = by_highs(matrix, guided=asked)
            assert feasible == (gain is not None)
            infeasible += not feasible
            if gain is not None:
                exact = kind not in ("two equal", "ties")
                assert gain @ weights / len(weights) == pytest.approx(best, abs=1e-12 if exact else 1e-9)
    if kind in ("random", "of unlike length"):
        assert infeasible, "no programme without a solution"


def test_of_several_best_corners_the_mean_is_taken() -> None:
    """So that no order of the objectives decides."""
    gram = np.eye(4)
    gram[:3, 3] = gram[3, :3] = [0.5, 0.5, 0.1]
    np.testing.assert_allclose(chosen(gram, guided=True)[0], [1.5, 1.5, 0.0], atol=1e-12)
    gram[0, 3] = gram[3, 0] = 0.5 + 1e-6
    np.testing.assert_allclose(chosen(gram, guided=True)[0], [3.0, 0.0, 0.0], atol=1e-12)


def test_bounds_that_are_almost_one_make_no_corner() -> None:
    """Their crossing would be rounding."""
    for distance in (0.0, 1e-12):
        gradients = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, 1.0, distance]])
        w = descent(gradients, np.array([0.1, 0.2, 0.3]))
        assert w is not None
        np.testing.assert_allclose(w[0], 0.5, rtol=1e-9)
        assert (gradients @ gradients.T @ w > -1e-9).all()


def test_a_bound_is_kept_within_less_than_a_solvers_tolerance() -> None:
    matrix = np.array([[-1e-7, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    weights, feasible = chosen(matrix, guided=True)
    assert feasible
    np.testing.assert_allclose(3 - weights[0], 3e-7, rtol=1e-6)


def test_the_guidance_decides_the_programme_without_a_read() -> None:
    matrix = torch.eye(4)
    with Operations() as operations, HostCalls(operations.host_reads):
        choose_weights(matrix, guided=matrix[0, 0] > 0.5)
    assert not operations.host_reads


def test_one_objective_has_all_the_weight() -> None:
    for guided in (False, True):
        assert chosen([[2.0, -1.0], [-1.0, 3.0]], guided=guided)[0] == [1.0]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_a_normal_gives_the_determinant(m: int) -> None:
    system = np.random.default_rng(5).normal(size=(m, m))
    found = pareto.normals(torch.tensor(system[1:])).numpy()[0]
    np.testing.assert_allclose(found @ system[0], np.linalg.det(system), rtol=1e-12)
    np.testing.assert_allclose(system[1:] @ found, 0, atol=1e-12)


# ---- rows of gradients


def random_rows(parameters: list[Tensor], count: int = 4) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters] for _ in range(count)]


def filled(parameters: list[Tensor], rows: Sequence[Sequence[Tensor | None]]) -> GradientRows:
    found = GradientRows(parameters, len(rows))
    for number, row in enumerate(rows):
        found.put(number, row)
    return found


def flat(row: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in row])


@pytest.mark.parametrize("block", [pareto.BLOCK, 1, 3, 11])
def test_products_and_the_combination(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 11 columns: fewer than a block, whole blocks, blocks and a rest."""
    monkeypatch.setattr(pareto, "BLOCK", block)
    parameters = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros((), dtype=torch.float64), torch.zeros(4).double()]
    rows = random_rows(parameters)
    gradients = filled(parameters, rows)
    found = gradients.products()
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(found[i, j], flat(rows[i]) @ flat(rows[j]))
    combined = gradients.combine(torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64))
    for k, parameter in enumerate(combined):
        torch.testing.assert_close(parameter, 0.5 * rows[0][k] + 2 * rows[1][k])
        assert parameter.shape == parameters[k].shape


def test_long_rows() -> None:
    parameters = [torch.zeros(pareto.BLOCK + 7), torch.zeros(2, pareto.BLOCK)]
    rows = random_rows(parameters)
    expected = torch.stack([flat(row) for row in rows]).double()
    found = filled(parameters, rows).products().double()
    torch.testing.assert_close(found, expected @ expected.t(), rtol=1e-5, atol=1e-2)


def test_sums_are_taken_in_full_precision() -> None:
    parameters = [torch.zeros(3000, dtype=torch.bfloat16)]
    gradients = filled(parameters, [[torch.ones(3000, dtype=torch.bfloat16)] for _ in range(2)])
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients.products()
    assert found.dtype == torch.float32
    assert found[0, 1].item() == 3000
    (combined,) = gradients.combine(torch.ones(2))
    assert combined.dtype == torch.bfloat16
    assert combined.eq(2).all()


def test_what_a_loss_does_not_depend_on_has_zeros() -> None:
    parameters = [torch.zeros(2), torch.zeros(3)]
    ones = [torch.ones(2), torch.ones(3)]
    gradients = filled(parameters, [ones, ones])
    gradients.put(0, [None, ones[1]])
    gradients.put(1, [None, None])
    assert gradients.matrix.tolist() == [[0, 0, 1, 1, 1], [0] * 5]


def test_rows_are_in_the_order_of_the_indices_whatever_the_memory_format() -> None:
    parameters = [torch.zeros(4, 3, 2, 2), torch.zeros(5, 2)]
    rows = random_rows(parameters, 2)
    strided = [[row[0].to(memory_format=torch.channels_last), row[1].t().contiguous().t()] for row in rows]
    assert not strided[0][0].is_contiguous()
    assert not strided[0][1].is_contiguous()
    gradients = filled([parameters[0].to(memory_format=torch.channels_last), parameters[1]], strided)
    assert torch.equal(gradients.matrix, torch.stack([flat(row) for row in rows]))
    for found, one, other in zip(gradients.combine(torch.tensor([1.0, -2.0])), *rows, strict=True):
        assert torch.equal(found, one - 2 * other)


def test_the_matrix_is_kept_until_the_parameters_change() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    gradients = filled([parameter], [[torch.ones(3)], [torch.ones(3)]])
    kept = gradients.matrix
    gradients.combine(torch.ones(2))
    gradients.put(0, [torch.ones(3)])
    assert gradients.matrix is kept
    parameter.data = parameter.data.double()
    gradients.put(0, [torch.ones(3).double()])
    assert gradients.matrix.dtype == torch.float64
    gradients.parameters[0] = parameter.to("meta")
    gradients.put(0, [torch.ones(3, dtype=torch.float64, device="meta")])
    assert gradients.matrix.device.type == "meta"


def test_the_next_step_leaves_the_last_ones_gradients_alone() -> None:
    """An optimiser may keep them."""
    parameters = [torch.zeros(2), torch.zeros(3)]
    first, second = random_rows(parameters, 2), random_rows(parameters, 2)
    gradients = filled(parameters, first)
    kept = gradients.combine(torch.tensor([1.0, 0.5]))
    for number, row in enumerate(second):
        gradients.put(number, row)
    gradients.combine(torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(flat(kept), flat(first[0]) + 0.5 * flat(first[1]))
