"""Optimal transport with an entropic term, balanced or unbalanced, by a fixed number of Sinkhorn iterations."""

from typing import NamedTuple

import torch
from torch import Tensor

from dafw.nn.precision import full_precision


class Transport(NamedTuple):
    """The result of :func:`sinkhorn`: plan_ij = exp(rows_i - cost_ij / epsilon + columns_j).

    Attributes:
        plan: (n, m), the mass that goes from row i to column j.
        rows: (n,), the logarithm of the rows' scaling; -inf for a row without mass.
        columns: (m,), the logarithm of the columns' scaling.
    """

    plan: Tensor
    rows: Tensor
    columns: Tensor


def sinkhorn(
    cost: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    epsilon: float,
    iterations: int,
    relax_rows: float | None = None,
    relax_columns: float | None = None,
) -> Transport:
    """The plan Q >= 0 that minimises <Q, cost> + epsilon sum_ij Q_ij (log Q_ij - 1) under the given marginals.

    A relaxed marginal need not be met exactly; it costs relax * KL(its sums, the given ones). Cuturi, Sinkhorn
    Distances, NIPS 2013, https://arxiv.org/abs/1306.0895; Chizat et al., Scaling Algorithms for Unbalanced Optimal
    Transport Problems, Math. Comp. 87 (2018), https://arxiv.org/abs/1607.05816. Each iteration scales the rows, then
    the columns. So the sums of columns that are not relaxed are exact after any number of iterations. If both are
    relaxed, each iteration reduces the distance of the scalings to the solution at least by the factor a b, where a =
    relax / (relax + epsilon) for the rows and b the same for the columns.

    All computations are in logarithms, so no ``epsilon`` overflows. Nothing is read from the device.

    Args:
        cost: (n, m).
        rows: (n,) mass of each row, 0 for a row to leave out; ``None``: 1 / n each.
        columns: (m,) mass of each column, 0 for a column to leave out; ``None``: 1 / m each.
        epsilon: weight of the entropy, positive.
        iterations: number of iterations.
        relax_rows: weight of the rows' divergence; ``None`` for exact sums.
        relax_columns: weight of the columns' divergence; ``None`` for exact sums.

    Raises:
        ValueError: if ``epsilon`` or ``iterations`` is not positive.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon and iterations must be positive, not {epsilon} and {iterations}")
    with torch.autocast(cost.device.type, enabled=False):
        kernel = full_precision(cost) / -epsilon
        n, m = kernel.shape
        log_rows = kernel.new_full((n,), 1 / n).log() if rows is None else rows.to(kernel.dtype).log()
        log_columns = kernel.new_full((m,), 1 / m).log() if columns is None else columns.to(kernel.dtype).log()
        row_power, column_power = _power(relax_rows, epsilon), _power(relax_columns, epsilon)
        g = torch.zeros_like(log_columns)
        for _ in range(iterations):
            f = row_power * (log_rows - (kernel + g).logsumexp(1))
            g = column_power * (log_columns - (kernel + f[:, None]).logsumexp(0))
        return Transport((kernel + f[:, None] + g).exp(), f, g)


def _power(relax: float | None, epsilon: float) -> float:
    """The exponent of an update: 1 for an exact marginal."""
    return 1.0 if relax is None else relax / (relax + epsilon)
