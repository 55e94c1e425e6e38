"""Losses of critics that tell the domains apart."""

from torch import Tensor
from torch.nn import functional as F

from dafw.nn.precision import full_precision


def domain_bce(scores: Tensor, num_source: int, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of "is source", each domain counting one half whatever its number of rows.

    1/2 [mean_s w_i (-log sigmoid(a_i)) + mean_t w_i (-log(1 - sigmoid(a_i)))].  With two equal halves it is the mean
    over the batch.  Ganin et al., JMLR 17 (2016), section 4, https://arxiv.org/abs/1505.07818, add the two means: twice
    this value.

    Args:
        scores: (N,) or (N, 1) logits, source rows first.
        num_source: number of source rows.
        weights: (N,) or (N, 1), a factor for each row's term, normalised by the caller (as in CDAN+E: to sum to N).

    Returns:
        A scalar.

    Raises:
        ValueError: a domain has no rows, or ``scores`` has more than one column.
    """
    rows = scores.shape[0]
    if scores.numel() != rows:
        raise ValueError(f"scores must be (N,) or (N, 1), not {tuple(scores.shape)}")
    if not 0 < num_source < rows:
        raise ValueError(f"both domains need rows: {num_source} of {rows} are source")
    scores = full_precision(scores)
    source, target = -F.logsigmoid(scores[:num_source]), -F.logsigmoid(-scores[num_source:])
    if weights is not None:
        weights = weights.view_as(scores)
        source, target = source * weights[:num_source], target * weights[num_source:]
    return 0.5 * (source.mean() + target.mean())
