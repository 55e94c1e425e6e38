"""Optimal transport with an entropic term, balanced or not, by a fixed number of Sinkhorn's iterations."""

from typing import NamedTuple

import torch
from torch import Tensor

from dafw.nn.precision import full_precision


class Transport(NamedTuple):
    """What Sinkhorn's iterations found: plan_ij = exp(rows_i - cost_ij / epsilon + columns_j).

    Attributes:
        plan: (n, m), what goes from row i to column j.
        rows: (n,), the logarithm of the rows' scaling; -inf where a row has no mass.
        columns: (m,), that of the columns'.
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
    """The plan Q >= 0 with the least <Q, cost> + epsilon sum_ij Q_ij (log Q_ij - 1), close to the given marginals.

    A marginal that is relaxed costs relax * KL(its sums, the given ones) instead of being met exactly. Cuturi, Sinkhorn
    Distances, NIPS 2013, https://arxiv.org/abs/1306.0895; Chizat et al., Scaling Algorithms for Unbalanced Optimal
    Transport Problems, Math. Comp. 87 (2018), https://arxiv.org/abs/1607.05816. Each iteration scales the rows, then
    the columns: sums of columns that are not relaxed are exact whatever the number of iterations. If both are relaxed,
    an iteration brings the scalings nearer to the solution by at least the factor a b with
    a = relax / (relax + epsilon) of the rows, b of the columns.

    All is computed in logarithms, so that no ``epsilon`` overflows, and nothing is read from the device.

    Args:
        cost: (n, m).
        rows: (n,) mass of each row, 0 for a row that is to be left out; 1 / n each if ``None``.
        columns: (m,) mass of each column, likewise.
        epsilon: weight of the entropy, positive.
        iterations: how many.
        relax_rows: weight of the rows' divergence; ``None`` for exact sums.
        relax_columns: weight of the columns' divergence.

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
