"""Which rows and which classes two label sets have in common, by unbalanced transport: no threshold of confidence.

Chang et al., Unified Optimal Transport Framework for Universal Domain Adaptation, NeurIPS 2022,
https://arxiv.org/abs/2210.17067, in the form of the authors' code, without a random number or a size of its own: what
the code draws are arguments, and what it leaves out are rows without mass.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.transport import sinkhorn


class Detection(NamedTuple):
    """What unbalanced transport says of the rows.

    Attributes:
        labels: (n,) int64, the class that takes most of a row.
        selected: (n,) bool, whether it is surely of that class, and the class is common.
        received: (K,), the share of all mass that goes to each class.
        potentials: (K,), the logarithm of the classes' scaling.
        offset: what completes the logarithm of a row's entry over a row's mean mass; see :func:`detect_common`.
    """

    labels: Tensor
    selected: Tensor
    received: Tensor
    potentials: Tensor
    offset: Tensor


def detect_common(
    cosines: Tensor, present: Tensor, marginal: Tensor, *, epsilon: float, relaxation: float, iterations: int
) -> Detection:
    """Transports rows to classes at the cost -cosine, both marginals being relaxed, and selects by mean masses.

    With N rows present and Q the plan, scaled to sum to 1, row i is selected if max_j Q_ij > 1 / N and the class that
    attains it receives sum_i Q_ij >= 1 / K. For any row of cosines c, with r = relaxation / (relaxation + epsilon),

        log(N Q_ij) = offset + c_j / epsilon + potentials_j - r logsumexp_k (c_k / epsilon + potentials_k).

    Args:
        cosines: (n, K).
        present: (n,), 1 or 0: which rows there are.
        marginal: (K,), masses of the classes, which sum to 1.
        epsilon: weight of the entropy.
        relaxation: weight of both marginals' divergences.
        iterations: Sinkhorn's.
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
    """Rows that make as many common as private ones, by a rough count of both.

    Rows whose nearest prototype has a cosine above ``gamma`` count as common. If they are fewer, selected rows are
    repeated; if they are more, rows halfway to their farthest prototype are added as private ones.

    Args:
        rows: (n, d), of length 1.
        prototypes: (K, d), of length 1.
        selected: (n,) bool, what a first transport is sure of; if it is of nothing, there is nothing to repeat.
        draws: (n,) in [0, 1), which say what is repeated or added.
        gamma: see above.

    Returns:
        Cosines (n, K), and (n,) bool which of these rows count: as many as the smaller side lacks.
    """
    n, cosines = len(rows), rows @ prototypes.T
    common = (cosines.amax(1) > gamma).sum()
    lacking = n - 2 * common  # common ones, or if negative private ones
    sure = selected.sum()
    order = selected.long().argsort(descending=True, stable=True)
    repeated = cosines[order[pick(draws, sure)]]
    opposed = F.normalize(rows + prototypes[cosines.argmin(1)], dim=1)
    added = opposed[pick(draws, n)] @ prototypes.T
    size = torch.where(lacking >= 0, torch.where(sure > 0, lacking, 0), -lacking)
    return torch.where(lacking >= 0, repeated, added), torch.arange(n, device=rows.device) < size


def pick(draws: Tensor, count: int | Tensor) -> Tensor:
    """Positions in [0, count) from draws in [0, 1), also where their product rounds up; 0 if there are none."""
    return (draws * count).long().clamp(max=count - 1).clamp(min=0)
