"""Several objectives on shared parameters: the direction that a preference picks among their gradients.

ParetoDA: Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137. With the gradients
g_1, ..., g_m of the objectives as columns of G, g_v the gradient of a loss on held-out samples (the guidance), C = G'G
and q = G'g_v, the direction is G w, where the weights w >= 0, sum w = 1 solve a linear programme of m variables:

*guided*   max w.q   such that (C w)_j >= 0 for the objective that the guidance agrees with most (the largest q_j > 0),
           (C w)_j >= q_j for those it contradicts (q_j <= 0), and no bound for the others it agrees with;
           C w >= 0 if it agrees with none.
*descent*  max 1.Cw  such that C w >= 0 (no objective rises) and w.q >= min(max_j q_j, 0).

Guided in a step whose held-out loss is above its lowest value, descent otherwise. All weights are then multiplied by m,
so that they sum to the number of objectives, as in a plain sum of losses.

The paper itself was not at hand: both programmes and the factor m were read in the authors' code, the rest follows a
summary of the paper. That a held-out loss which is minus a mutual information is compared with its lowest value is ours
(see :func:`choose_weights`).
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from torch import Tensor

from dafw.nn.distributed import mean_over_ranks
from dafw.nn.precision import full_precision

Mode = Literal["paper", "authors"]


class Preference(NamedTuple):
    """What :func:`choose_weights` chose.

    Attributes:
        weights: one per objective, not negative.
        guided: whether the guided programme was asked for.
        feasible: whether it has a solution; equal weights otherwise.
    """

    weights: tuple[float, ...]
    guided: bool
    feasible: bool


def gradient_matrix(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Gradients of several losses as rows of one matrix, averaged over the ranks in one collective.

    Args:
        gradients: for each of k losses, its gradients at the same parameters, P numbers in all.

    Returns:
        (k, P), at least in float32, the same on every rank.
    """
    flat = full_precision(torch.cat([gradient.reshape(-1) for row in gradients for gradient in row]))
    (flat,) = mean_over_ranks([flat])
    return flat.view(len(gradients), -1)


def inner_products(matrix: Tensor) -> Tensor:
    """Inner products of all rows: (k, P) -> (k, k), at least in float32 and whatever the autocast."""
    with torch.autocast(matrix.device.type, enabled=False):
        return matrix @ matrix.t()


def combine(matrix: Tensor, weights: Sequence[float], like: Sequence[Tensor]) -> list[Tensor]:
    """sum_j w_j g_j, as one gradient for each parameter.

    Args:
        matrix: (k, P) from :func:`gradient_matrix`; rows beyond the number of weights are left out.
        weights: one for each of the first rows.
        like: the parameters whose gradients the rows hold.

    Returns:
        Tensors shaped like the parameters, and in their dtype: views of one vector.
    """
    first, *rows = matrix.unbind()
    total = first * weights[0]
    for row, weight in zip(rows, weights[1:], strict=False):
        total.add_(row, alpha=weight)
    parts = torch.split(total, [parameter.numel() for parameter in like])
    return [part.view_as(parameter).to(parameter.dtype) for part, parameter in zip(parts, like, strict=True)]


def choose_weights(products: ArrayLike, excess: float, *, eps: float = 1e-3, mode: Mode = "paper") -> Preference:
    """Weights of m objectives, on the host.

    Args:
        products: (m + 1, m + 1) inner products of the objectives' gradients and, last, the guidance's.
        excess: how far the held-out loss is above its lowest value. The paper and its code compare the loss itself
            with 0 and ``eps``; minus a mutual information is never positive, so that neither ever is guided by it.
        eps: guided above it.
        mode: ``paper``: equal weights that sum to m where the programme has no solution; ``authors``: that sum to m^2,
            as in their code, which multiplies (1, ..., 1) by m as well.

    Returns:
        The weights. Products that are not finite count as without a solution.

    Raises:
        ValueError: ``products`` is not square, or has no objective.
    """
    matrix = np.asarray(products, dtype=np.float64)
    m = len(matrix) - 1
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or m < 1:
        raise ValueError(f"inner products of m objectives and the guidance are (m + 1, m + 1), not {matrix.shape}")
    guided = excess > eps
    simplex = simplex_weights(matrix[:m, :m], matrix[:m, m], guided=guided)
    if simplex is None:
        return Preference((1.0 if mode == "paper" else float(m),) * m, guided, False)
    return Preference(tuple((m * simplex).tolist()), guided, True)


def simplex_weights(gram: ArrayLike, guidance: ArrayLike, *, guided: bool) -> NDArray[np.float64] | None:
    """Solves one of the module's two programmes: by its corners, or with HiGHS where they leave a doubt.

    Both are scaled so that the largest inner product is 1, which changes no solution and gives the solver's absolute
    tolerances a meaning, however small the gradients are.

    Args:
        gram: (m, m) C, inner products of the objectives' gradients.
        guidance: (m,) q, their inner products with the guidance.
        guided: which programme.

    Returns:
        (m,) weights on the simplex, or ``None``: no solution.
    """
    c, q = np.asarray(gram, dtype=np.float64).tolist(), np.asarray(guidance, dtype=np.float64).tolist()
    m = len(q)
    numbers = [number for row in (*c, q) for number in row]
    largest = max(map(abs, numbers))
    if not all(map(math.isfinite, numbers)):
        return None
    if largest > 0:
        c, q = [[number / largest for number in row] for row in c], [number / largest for number in q]
    if guided:
        gain, left, right = q, c, [0.0] * m
        if max(q) > 0:
            aligned = q.index(max(q))
            left = [row for j, row in enumerate(c) if q[j] <= 0 or j == aligned]
            right = [min(number, 0.0) for j, number in enumerate(q) if number <= 0 or j == aligned]
    else:
        gain, left, right = [sum(column) for column in zip(*c, strict=True)], [*c, q], [*[0.0] * m, min(max(q), 0.0)]
    sure, corner = best_corner(gain, left, right)
    if not sure:
        a_ub, b_ub = -np.array(left), -np.array(right)
        found: Any = linprog(-np.array(gain), A_ub=a_ub, b_ub=b_ub, A_eq=np.ones((1, m)), b_eq=[1.0], method="highs")
        corner = None if found.x is None else found.x.tolist()
    if corner is None:
        return None
    weights = np.array(corner).clip(0.0)
    return np.asarray(weights / weights.sum())


def best_corner(
    gain: Sequence[float], left: Sequence[Sequence[float]], right: Sequence[float]
) -> tuple[bool, list[float] | None]:
    """Max gain.w such that left w >= right and w on the simplex, by trying every corner: a fraction of a solver's call.

    What the bounds leave of the simplex is a bounded polytope. A linear function is largest over one at a corner, and a
    corner is the one solution of m - 1 bounds that are met with equality, sum w = 1 being the m-th equation. With
    sum w = 1, row.w >= b is the same as (row - b 1).w >= 0. So all choices of m - 1 of these rows and of w_j >= 0 are
    solved, and those kept that meet the other bounds. No corner means no solution.

    A solver decides within its tolerances (HiGHS: 1e-7). Nothing is decided here that could depend on them.

    Plain numbers, not arrays: between two training steps NumPy's many small functions have left the processor's caches,
    and a call of them costs five times what it does in a loop.

    Args:
        gain: (m,), of the order of 1.
        left: (r, m), at most of the order of 1.
        right: (r,).

    Returns:
        Whether the answer is sure: no corner breaks a bound by less than 1e-6, none is that of bounds which are almost
        parallel, and none is better than the others by less than 1e-6. And (m,) the best corner; ``None``: no solution.
    """
    m = len(gain)
    bounds = [[number - b for number in row] for row, b in zip(left, right, strict=True)]
    bounds = [row for row in bounds if any(row)]  # 0 >= 0 bounds nothing
    units = [[number / size for number in row] for row in bounds for size in [math.hypot(*row)]]
    units += [[float(i == j) for i in range(m)] for j in range(m)]
    corners: list[list[float]] = []
    for chosen in combinations(units, m - 1):
        corner = normal(chosen)
        total = sum(corner)  # the determinant of the m equations
        if abs(total) < 1e-5:
            return False, None
        corner = [number / total for number in corner]
        slack = min(corner)
        if slack > -1e-6:
            slack = min([slack, *[_dot(row, corner) for row in bounds]])
        if slack > -1e-10:
            corners.append(corner)
        elif slack > -1e-6:
            return False, None
    if not corners:
        return True, None
    values = [_dot(gain, corner) for corner in corners]
    highest = max(values)
    best = corners[values.index(highest)]
    for corner, value in zip(corners, values, strict=True):
        if value > highest - 1e-6 and max([abs(x - y) for x, y in zip(corner, best, strict=True)]) > 1e-9:
            return False, best
    return True, best


def normal(rows: Sequence[Sequence[float]]) -> list[float]:
    """The cross product of m - 1 rows of m numbers: orthogonal to them all, zero if they are dependent.

    Its inner product with a further row is the determinant of that row above the others.
    """
    if not rows:
        return [1.0]
    if len(rows) == 2:  # ParetoDA's own case
        (a, b, c), (d, e, f) = rows
        return [b * f - c * e, c * d - a * f, a * e - b * d]
    minors = [[[*row[:j], *row[j + 1 :]] for row in rows] for j in range(len(rows) + 1)]
    return [(-1) ** j * _dot(first, normal(rest)) for j, (first, *rest) in enumerate(minors)]


def _dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum([a * b for a, b in zip(x, y, strict=True)])
