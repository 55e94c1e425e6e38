"""Finds the rows and the classes that two label sets share, by unbalanced optimal transport without a threshold.

Chang et al., Unified Optimal Transport Framework for Universal Domain Adaptation, NeurIPS 2022,
https://arxiv.org/abs/2210.17067, in the form of the authors' code. Two things differ from that code, so that no random
number is drawn here and all sizes are fixed: the random draws are arguments, and rows that the code leaves out have
mass 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.transport import sinkhorn


class Detection(NamedTuple):
    """The result of :func:`detect_common`.

    Attributes:
        labels: (n,) int64, the class that receives the most mass from the row.
        selected: (n,) bool, True if the row surely belongs to that class and the class is common.
        received: (K,), the share of all mass that goes to each class.
        potentials: (K,), the logarithm of the classes' scaling.
        offset: scalar, the constant term of log(N Q_ij) in the formula of :func:`detect_common`.
    """

    labels: Tensor
    selected: Tensor
    received: Tensor
    potentials: Tensor
    offset: Tensor


def detect_common(
    cosines: Tensor, present: Tensor, marginal: Tensor, *, epsilon: float, relaxation: float, iterations: int
) -> Detection:
    """Transports rows to classes at the cost -cosine with both marginals relaxed, and selects rows by their mass.

    N rows are present. Q is the plan, scaled to sum to 1. Row i is selected if max_j Q_ij > 1 / N and if the class with
    this maximum receives sum_i Q_ij >= 1 / K. For any row of cosines c, with r = relaxation / (relaxation + epsilon),

        log(N Q_ij) = offset + c_j / epsilon + potentials_j - r logsumexp_k (c_k / epsilon + potentials_k).

    Args:
        cosines: (n, K).
        present: (n,), 1 for a row that takes part, else 0.
        marginal: (K,), masses of the classes; they sum to 1.
        epsilon: weight of the entropy.
        relaxation: weight of the divergence of each marginal.
        iterations: number of Sinkhorn iterations.
    """
    count = present.sum()
    found = sinkhorn(
        -cosines,
        present / count,
        marginal,
        epsilon=epsilon,
        iterations=iterations,
        relax_rows=relaxation,
        relax_columns=relaxation,
    )
    total = found.plan.sum()
    plan = found.plan / total
    largest, labels = plan.max(1)
    received = plan.sum(0)
    common = received * len(received) >= 1
    offset = (1 - relaxation / (relaxation + epsilon)) * count.log() - total.log()
    return Detection(labels, (largest * count > 1) & common[labels], received, found.columns, offset)


def fill_up(rows: Tensor, prototypes: Tensor, selected: Tensor, draws: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Adds rows so that about as many rows are of common classes as of private ones.

    A row counts as common if the cosine to its nearest prototype is above ``gamma``. If common rows are fewer, selected
    rows are repeated. If they are more, rows are moved halfway to their farthest prototype and added as private ones.

    Args:
        rows: (n, d), of length 1.
        prototypes: (K, d), of length 1.
        selected: (n,) bool, the rows that a first transport selected. If it selected none, no row is repeated.
        draws: (n,) in [0, 1); they choose the rows that are repeated or added.
        gamma: threshold of the cosine, see above.

    Returns:
        Cosines (n, K) of the added rows, and (n,) bool: True for the rows to use, as many as the smaller group lacks.
    """
    n, cosines = len(rows), rows @ prototypes.T
    common = (cosines.amax(1) > gamma).sum()
    lacking = n - 2 * common  # positive: common rows are lacking; negative: private rows
    sure = selected.sum()
    order = selected.long().argsort(descending=True, stable=True)
    repeated = cosines[order[pick(draws, sure)]]
    opposed = F.normalize(rows + prototypes[cosines.argmin(1)], dim=1)
    added = opposed[pick(draws, n)] @ prototypes.T
    size = torch.where(lacking >= 0, torch.where(sure > 0, lacking, 0), -lacking)
    return torch.where(lacking >= 0, repeated, added), torch.arange(n, device=rows.device) < size


def pick(draws: Tensor, count: int | Tensor) -> Tensor:
    """Positions in [0, count) from draws in [0, 1), clamped where the product rounds up; 0 if ``count`` is 0."""
    return (draws * count).long().clamp(max=count - 1).clamp(min=0)
