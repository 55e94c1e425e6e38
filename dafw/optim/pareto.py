"""Combines the gradients of several objectives on shared parameters into the direction that a preference picks.

ParetoDA: Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137. The gradients
g_1, ..., g_m of the objectives are the columns of G. g_v is the gradient of a loss on held-out samples (the guidance).
With C = G'G and q = G'g_v, the direction is G w. The weights w >= 0, sum w = 1 solve a linear programme of m variables:

*guided*   max w.q   such that (C w)_j >= 0 for the objective that the guidance agrees with most (the largest q_j > 0),
           (C w)_j >= q_j for those it contradicts (q_j <= 0), and no bound for the others it agrees with;
           C w >= 0 if it agrees with none.
*descent*  max 1.Cw  such that C w >= 0 (no objective rises) and w.q >= min(max_j q_j, 0).

The caller decides which of the two is solved. All weights are then multiplied by m, so that they sum to the number of
objectives, as in a plain sum of losses.

The paper itself was not at hand. Both programmes and the factor m were read in the authors' code; the rest follows a
summary of the paper.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dafw.nn.distributed import average_over_ranks

Mode = Literal["paper", "authors"]
#: Number of columns in one block of :meth:`GradientRows.products`.
BLOCK = 65_536


class Preference(NamedTuple):
    """The result of :func:`choose_weights`.

    Attributes:
        weights: one per objective, not negative.
        feasible: whether the programme has a solution; if not, the weights are equal.
    """

    weights: tuple[float, ...]
    feasible: bool


class GradientRows:
    """Gradients of several losses at the same parameters, as rows of one matrix that is reused from step to step.

    In a step call :meth:`put` for each loss, then :meth:`average`, :meth:`products` and :meth:`combine`. Copies and
    pickles hold no gradients.

    Args:
        parameters: the parameters of the losses, P numbers in all. If their device or dtype changes, the next ``put``
            makes a new matrix.
        count: number of losses k.

    Attributes:
        matrix: (k, P), at least in float32, on the parameters' device.
    """

    def __init__(self, parameters: Sequence[Tensor], count: int) -> None:
        self.parameters, self.count = list(parameters), count
        self.matrix = torch.empty(0)
        self._views: list[list[Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        """The state without the gradients."""
        return {**self.__dict__, "matrix": torch.empty(0), "_views": []}

    def put(self, row: int, gradients: Sequence[Tensor | None]) -> None:
        """Copies the gradients of one loss into a row; they may have any memory format.

        Args:
            row: number of the loss, from 0.
            gradients: one for each parameter; ``None`` stands for zeros.
        """
        self._allocate()
        pairs = list(zip(self._views[row], gradients, strict=True))
        if empty := [view for view, gradient in pairs if gradient is None]:
            torch._foreach_zero_(empty)
        if given := [(view, gradient) for view, gradient in pairs if gradient is not None]:
            torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])

    def _allocate(self) -> None:
        device = self.parameters[0].device
        dtype = reduce(torch.promote_types, {parameter.dtype for parameter in self.parameters}, torch.float32)
        if self._views and self.matrix.device == device and self.matrix.dtype == dtype:
            return
        sizes = [parameter.numel() for parameter in self.parameters]
        self.matrix, self._views = torch.empty(0), []  # free the old matrix before allocating the new one
        self.matrix = torch.empty(self.count, sum(sizes), dtype=dtype, device=device)
        self._views = [
            [part.view(parameter.shape) for part, parameter in zip(row.split(sizes), self.parameters, strict=True)]
            for row in self.matrix
        ]

    def average(self) -> None:
        """Averages all rows over the ranks in one collective, in place."""
        average_over_ranks(self.matrix)

    def products(self) -> Tensor:
        """Inner products of all rows, (k, k), at least in float32, also under autocast.

        They are summed over blocks of columns, since BLAS takes twice the time for a long thin matrix times its
        transpose.
        """
        k, columns = self.matrix.shape
        whole = columns - columns % BLOCK
        rest = self.matrix[:, whole:]
        with torch.autocast(self.matrix.device.type, enabled=False):
            found = rest @ rest.t()
            if whole:
                blocks = self.matrix[:, :whole].view(k, -1, BLOCK).transpose(0, 1)
                found += torch.bmm(blocks, blocks.transpose(1, 2)).sum(0)
        return found

    def combine(self, weights: Sequence[float]) -> list[Tensor]:
        """sum_j w_j g_j, as one gradient for each parameter.

        Args:
            weights: one for each of the first rows; the other rows are left out.

        Returns:
            Tensors with the shapes and dtype of the parameters. They are views of one new vector, so they stay valid.
        """
        first, *rows = self.matrix[: len(weights)].unbind()
        total = first * weights[0]
        for row, weight in zip(rows, weights[1:], strict=True):
            total.add_(row, alpha=weight)
        parts = torch.split(total, [parameter.numel() for parameter in self.parameters])
        return [part.view(p.shape).to(p.dtype) for part, p in zip(parts, self.parameters, strict=True)]


def choose_weights(products: ArrayLike, *, guided: bool, mode: Mode = "paper") -> Preference:
    """Weights of m objectives, computed on the host.

    Args:
        products: (m + 1, m + 1) inner products of the objectives' gradients and of the guidance's gradient, the latter
            last.
        guided: solve the *guided* programme instead of *descent*.
        mode: the equal weights if the programme has no solution. With ``paper`` they sum to m. With ``authors`` they
            sum to m^2, as in their code, which multiplies (1, ..., 1) by m as well.

    Returns:
        The weights. If a product is not finite, the programme counts as having no solution.

    Raises:
        ValueError: ``products`` is not square, or has no objective.
    """
    matrix = np.asarray(products, dtype=np.float64)
    m = len(matrix) - 1
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or m < 1:
        raise ValueError(f"inner products of m objectives and the guidance are (m + 1, m + 1), not {matrix.shape}")
    simplex = simplex_weights(matrix[:m, :m], matrix[:m, m], guided=guided)
    if simplex is None:
        return Preference((1.0 if mode == "paper" else float(m),) * m, False)
    return Preference(tuple((m * simplex).tolist()), True)


def simplex_weights(gram: ArrayLike, guidance: ArrayLike, *, guided: bool) -> NDArray[np.float64] | None:
    """Solves one of the module's two programmes: by trying its corners, or with HiGHS if their answer is not sure.

    Both are scaled so that the largest inner product is 1. The scaling changes no solution, and it gives the solver's
    absolute tolerances a meaning, however small the gradients are.

    Args:
        gram: (m, m) C, inner products of the objectives' gradients.
        guidance: (m,) q, their inner products with the guidance.
        guided: solve the *guided* programme instead of *descent*.

    Returns:
        (m,) weights on the simplex, or ``None`` if there is no solution.
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
        from scipy.optimize import linprog  # most programmes do not need it

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
    """Maximises gain.w such that left w >= right and w is on the simplex, by trying every corner.

    It takes a fraction of the time of a solver's call.

    The bounds leave a bounded polytope of the simplex. A linear function is largest at one of its corners. A corner is
    the only solution of m - 1 bounds that are met with equality, together with sum w = 1 as the m-th equation. Because
    sum w = 1, row.w >= b is the same as (row - b 1).w >= 0. So the function solves the equations for every choice of m
    - 1 of these rows and of w_j >= 0, and keeps the solutions that meet the other bounds. If no corner is left, there
    is no solution.

    A solver decides within its tolerances (HiGHS: 1e-7). This function decides nothing that could depend on them.

    It uses plain numbers, not arrays: between two training steps NumPy's many small functions drop out of the
    processor's caches, and one call of them then costs five times as much as in a loop.

    Args:
        gain: (m,), of the order of 1.
        left: (r, m), at most of the order of 1.
        right: (r,).

    Returns:
        Whether the answer is sure, and the best corner (m,), or ``None`` if there is no solution. The answer is sure if
        no corner breaks a bound by less than 1e-6, no corner comes from bounds that are almost parallel, and no other
        corner comes within 1e-6 of the best value.
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
    """The cross product of m - 1 rows of m numbers: orthogonal to all of them, zero if they are dependent.

    Its inner product with one more row is the determinant of that row on top of the others.
    """
    if not rows:
        return [1.0]
    if len(rows) == 2:  # ParetoDA has three objectives
        (a, b, c), (d, e, f) = rows
        return [b * f - c * e, c * d - a * f, a * e - b * d]
    minors = [[[*row[:j], *row[j + 1 :]] for row in rows] for j in range(len(rows) + 1)]
    return [(-1) ** j * _dot(first, normal(rest)) for j, (first, *rest) in enumerate(minors)]


def _dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum([a * b for a, b in zip(x, y, strict=True)])
