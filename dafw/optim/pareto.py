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

The programme is solved on the gradients' device, in a fixed number of tensor operations, so that a step need not wait
for the device. See :func:`choose_weights`.

The paper itself was not at hand. Both programmes and the factor m were read in the authors' code; the rest follows a
summary of the paper.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from itertools import combinations, permutations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dafw.nn.distributed import average_over_ranks

Mode = Literal["paper", "authors"]
#: Number of columns in one block of :meth:`GradientRows.products`.
BLOCK = 65_536
#: Two bounds make no corner if the determinant of their unit rows is below this: rounding would exceed ``TOLERANCE``.
PARALLEL = 1e-7
#: Smallest number that anything is divided by.
TINY = 1e-300
#: What a corner may break a bound by, and how far below the best value it may be to count as best. Both are relative.
TOLERANCE = 1e-9


class Preference(NamedTuple):
    """The result of :func:`choose_weights`.

    Attributes:
        weights: (m,), one per objective, not negative, in float64.
        feasible: scalar bool, whether the programme has a solution; if not, the weights are equal.
    """

    weights: Tensor
    feasible: Tensor


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

    def combine(self, weights: Tensor) -> list[Tensor]:
        """sum_j w_j g_j, as one gradient for each parameter.

        Args:
            weights: (n,) for the first n rows, of the matrix's dtype and device; the other rows are left out.

        Returns:
            Tensors with the shapes and dtype of the parameters. They are views of one new vector, so they stay valid.
        """
        first, *rows = self.matrix[: len(weights)].unbind()
        total = first * weights[0]
        for row, weight in zip(rows, weights[1:], strict=True):
            total.addcmul_(row, weight)
        parts = torch.split(total, [parameter.numel() for parameter in self.parameters])
        return [part.view(p.shape).to(p.dtype) for part, p in zip(parts, self.parameters, strict=True)]


def choose_weights(products: Tensor, *, guided: Tensor, mode: Mode = "paper") -> Preference:
    """Weights of m objectives: solves one of the module's two programmes by trying all corners. It reads no value.

    The bounds leave a bounded polytope of the simplex. A linear function is largest at one of its corners. A corner is
    the only solution of m - 1 bounds that are met with equality, together with sum w = 1 as the m-th equation. Because
    sum w = 1, row.w >= b is the same as (row - b 1).w >= 0. So the function solves the equations for every choice of
    m - 1 of these m + 1 rows and of the m rows w_j >= 0 (21 choices for m = 3), and keeps the corners that meet all
    bounds.

    If several corners are best, the weights are the mean of their weights. That mean is a solution too, and it does not
    depend on the order of the objectives.

    Each row is scaled to length 1. This changes no solution, and it makes ``TOLERANCE`` relative, however small the
    gradients are.

    Args:
        products: (m + 1, m + 1) inner products of the objectives' gradients and of the guidance's gradient, the latter
            last.
        guided: scalar bool on the same device: solve the *guided* programme instead of *descent*.
        mode: the equal weights if the programme has no solution. With ``paper`` they sum to m. With ``authors`` they
            sum to m^2, as in their code, which multiplies (1, ..., 1) by m as well.

    Returns:
        The weights. If a product is not finite, the programme counts as having no solution.

    Raises:
        ValueError: ``products`` is not square, or has no objective.
    """
    m = len(products) - 1
    if products.ndim != 2 or products.shape[0] != products.shape[1] or m < 1:
        raise ValueError(f"inner products of m objectives and the guidance are (m + 1, m + 1), not {products.shape}")
    if products.device.type == "mps":  # which has no float64; the copy of these few numbers makes the host wait
        products, guided = products.cpu(), guided.cpu()
    gain, rows = programme(products.double(), guided)
    corners = normals(rows)
    totals = corners.sum(1, keepdim=True)  # the determinants of the m equations
    corners = corners / totals
    impossible = (corners @ rows.t() <= -TOLERANCE).any(1) | (totals.abs() <= PARALLEL).squeeze(1)
    values = (corners @ gain).masked_fill(impossible, -math.inf)
    highest = values.max()
    solution = corners.masked_fill((values < highest - TOLERANCE).unsqueeze(1), 0.0).sum(0).clamp_min(0.0)
    feasible = (products.abs().max() < math.inf) & (highest > -math.inf)  # whatever became of other products above
    weights = solution * (m / solution.sum())
    return Preference(weights.masked_fill(~feasible, 1.0 if mode == "paper" else float(m)), feasible)


def programme(products: Tensor, guided: Tensor) -> tuple[Tensor, Tensor]:
    """The programme of :func:`choose_weights`: maximise gain.w such that rows w >= 0 and sum w = 1.

    Args:
        products: (m + 1, m + 1) inner products in float64, the guidance's last.
        guided: scalar bool.

    Returns:
        The gain (m,), whose largest entry has size 1. The rows (2 m + 1, m) of the objectives, of the guidance, and of
        w >= 0. They have length 1, or 0 if there is no bound.
    """
    m = len(products) - 1
    c, q = products[:m, :m], products[:m, m]
    highest = q.max()
    bounds = q.clamp_max(0.0) * (guided & (highest > 0))
    free = guided & (q > 0) & (q < highest)
    rows = torch.cat(
        [
            (c - bounds.unsqueeze(1)).masked_fill(free.unsqueeze(1), 0.0),
            (q - highest.clamp_max(0.0)).masked_fill(guided, 0.0).unsqueeze(0),
            _tables(2 * m + 1, m, products.device).units,
        ]
    )
    gain = torch.where(guided, q, c.sum(0))
    return gain / gain.abs().max().clamp_min(TINY), rows / rows.norm(dim=1, keepdim=True).clamp_min(TINY)


def normals(rows: Tensor) -> Tensor:
    """The cross products of every m - 1 of the rows: orthogonal to them, zero if they are dependent.

    The inner product of one with one more row is the determinant of that row on top of the others.

    Args:
        rows: (r, m).

    Returns:
        (n, m), in the order of ``itertools.combinations`` of the rows.
    """
    tables = _tables(*rows.shape, rows.device)
    terms = rows[tables.choices, tables.orders].prod(2) * tables.signs
    return terms.view(len(terms), rows.shape[1], -1).sum(2)


class _Tables(NamedTuple):
    """Constants of r rows of m numbers.

    Attributes:
        choices: (n, 1, m - 1) every choice of m - 1 of the rows.
        orders: (m!, m - 1) the orders of the m columns without their first, sorted by it.
        signs: (m!,) 1 for even orders, -1 for odd ones, in float64.
        units: (m, m) the rows of w >= 0, in float64.
    """

    choices: Tensor
    orders: Tensor
    signs: Tensor
    units: Tensor


@lru_cache(maxsize=8)
def _tables(r: int, m: int, device: torch.device) -> _Tables:
    """They are cached, not copied to the device anew at every step."""
    choices, orders = list(combinations(range(r), m - 1)), list(permutations(range(m)))
    odd = [sum(x > y for x, y in combinations(order, 2)) % 2 for order in orders]
    with torch.inference_mode(False):
        return _Tables(
            torch.tensor(choices, dtype=torch.long, device=device).view(len(choices), 1, m - 1),
            torch.tensor([order[1:] for order in orders], dtype=torch.long, device=device),
            torch.tensor([1.0 - 2 * number for number in odd], dtype=torch.float64, device=device),
            torch.eye(m, dtype=torch.float64, device=device),
        )
