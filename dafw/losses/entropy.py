"""Entropy of predictions, in nats, from logits."""

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows, sum_over_ranks, world_size
from dafw.nn.precision import full_precision


def entropy(logits: Tensor, *, epsilon: float = 0.0, least: float = 0.0) -> Tensor:
    """H(p) = -sum_k p_k log(p_k + epsilon) with p = softmax(logits).

    Args:
        logits: (..., K).
        epsilon: added to each probability inside the logarithm, as some published code does; exact without it.
        least: leave out the terms of probabilities below this (1e-7 in the code of DCAN's authors).

    Returns:
        (...), between 0 and log K.
    """
    return _entropy(full_precision(logits).log_softmax(-1), epsilon, least)


def _entropy(log_p: Tensor, epsilon: float = 0.0, least: float = 0.0) -> Tensor:
    p = log_p.exp()
    terms = p * ((p + epsilon).log() if epsilon else log_p)
    return -(torch.where(p < least, 0.0, terms) if least else terms).sum(-1)


def mean_entropy(logits: Tensor, *, epsilon: float = 0.0, least: float = 0.0) -> Tensor:
    """mean_i H(p_i), what entropy minimisation minimises: Grandvalet and Bengio, NIPS 2004.

    Args:
        logits: (N, K).
        epsilon: see :func:`entropy`.
        least: see :func:`entropy`.

    Returns:
        A scalar; a mean over rows, so the ranks' own values average to that of the whole batch.
    """
    return entropy(logits, epsilon=epsilon, least=least).mean()


def mutual_information(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """H(mean_i p_i) - mean_i H(p_i) of the given rows alone: between input and prediction, 0 to log K.

    Args:
        logits: (N, K).
        epsilon: see :func:`entropy`.

    Returns:
        A scalar; high where predictions are sure one by one and diverse together.
    """
    log_p = full_precision(logits).log_softmax(-1)
    marginal = log_p.logsumexp(0)  # log of N mean_i p_i, which are logits too
    return entropy(marginal, epsilon=epsilon) - _entropy(log_p, epsilon).mean()


def information_maximisation(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """mean_i H(p_i) - H(mean_i p_i), to be minimised: SHOT, Liang et al., ICML 2020, https://arxiv.org/abs/2002.08546.

    Args:
        logits: (N, K); on several ranks this rank's rows, all of which are gathered.
        epsilon: see :func:`entropy`.

    Returns:
        A scalar, minus the mutual information of input and prediction.
    """
    return -mutual_information(gather_rows(logits), epsilon=epsilon)


def certainty_weights(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Weights of rows, in proportion to 1 + exp(-H(p_i)), that sum to the number of rows: no gradient flows through.

    Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018, https://arxiv.org/abs/1705.10667.

    Args:
        logits: (N, K); on several ranks this rank's rows: the sum is over all ranks' rows.
        epsilon: added to p inside the logarithm of the entropy (the Transfer-Learning-Library: 1e-5).

    Returns:
        (N,), each between N / (2 N) and 2.
    """
    weights = 1 + (-entropy(logits.detach(), epsilon=epsilon)).exp()
    return weights * (weights.numel() * world_size() / sum_over_ranks(weights.sum()))
