"""Losses of critics, which tell the domains apart."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.nn.precision import full_precision


def domain_bce(scores: Tensor, num_source: int, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of "is source"; each domain counts one half, however many rows it has.

    1/2 [mean_s w_i (-log sigmoid(a_i)) + mean_t w_i (-log(1 - sigmoid(a_i)))].  If both domains have the same number of
    rows, this is the mean over the batch.  Ganin et al., JMLR 17 (2016), section 4, https://arxiv.org/abs/1505.07818,
    add the two means: twice this value. The Transfer-Learning-Library halves as here.

    Args:
        scores: (N,) or (N, 1) logits, source rows first.
        num_source: number of source rows.
        weights: (N,) or (N, 1), a factor for each row's term. The caller normalises them (CDAN+E: to the sum N).

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
    scores = full_precision(scores).view(rows)
    is_source, halves = _constants(num_source, rows, scores.device, scores.dtype)
    if weights is not None:
        weights = weights.view(rows)
        halves = weights if halves is None else halves * weights
    return F.binary_cross_entropy_with_logits(scores, is_source, weight=halves)


@lru_cache(maxsize=16)
def _constants(num_source: int, rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Labels (N,), and row weights (N,) that make each domain count one half (``None`` for equally large domains).

    They are cached, not made anew at every step.
    """
    with torch.inference_mode(False):
        is_source = torch.zeros(rows, device=device, dtype=dtype)
        is_source[:num_source] = 1
        if 2 * num_source == rows:
            return is_source, None
        halves = torch.full_like(is_source, rows / (2 * (rows - num_source)))
        halves[:num_source] = rows / (2 * num_source)
        return is_source, halves


def margin_disparity(logits: Tensor, critic_logits: Tensor, num_source: int, *, margin: float = 4.0) -> Tensor:
    """Small if a second head agrees with the label head on source rows and disagrees on target rows.

    margin * mean_s(-log q_i[y_i]) + mean_t(-log(1 - q_i[y_i])), q = softmax(critic_logits), y_i = argmax(logits_i).
    This is the negative of the margin disparity discrepancy, which the second head maximises: Zhang et al., ICML 2019,
    https://arxiv.org/abs/1904.05801.  log(1 - q[y]) is computed exactly, as a difference of two log-sum-exps; the
    Transfer-Learning-Library computes log(min(1 - q[y] + 1e-6, 1)).

    Args:
        logits: (N, K) of the label head, source rows first. Only the argmax is used; no gradient flows into them.
        critic_logits: (N, K) of the second head.
        num_source: number of source rows.
        margin: weight of the source rows, exp(rho) for the paper's margin rho.

    Returns:
        A scalar, 0 or more; a sum of means over rows, so averaging over ranks gives the value of the whole batch.

    Raises:
        ValueError: a domain has no rows.
    """
    if not 0 < num_source < len(logits):
        raise ValueError(f"both domains need rows: {num_source} of {len(logits)} are source")
    labels = logits.detach().argmax(1)
    critic_logits = full_precision(critic_logits)
    follows = F.cross_entropy(critic_logits[:num_source], labels[:num_source])
    target = critic_logits[num_source:]
    others = target.scatter(1, labels[num_source:, None], float("-inf")).logsumexp(1)
    return margin * follows + (target.logsumexp(1) - others).mean()
