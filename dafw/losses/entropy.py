"""Entropy of predictions, computed from logits, in nats."""

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows, sum_over_ranks, world_size
from dafw.nn.precision import full_precision


def entropy(logits: Tensor, *, epsilon: float = 0.0, least: float = 0.0) -> Tensor:
    """H(p) = -sum_k p_k log(p_k + epsilon) with p = softmax(logits).

    Args:
        logits: (..., K).
        epsilon: constant added to each probability inside the logarithm, as some published code does. With 0 the
            entropy is exact.
        least: terms of probabilities below this are left out (1e-7 in the code of DCAN's authors).

    Returns:
        (...), between 0 and log K.
    """
    return _entropy(full_precision(logits).log_softmax(-1), epsilon, least)


def _entropy(log_p: Tensor, epsilon: float = 0.0, least: float = 0.0) -> Tensor:
    p = log_p.exp()
    terms = p * ((p + epsilon).log() if epsilon else log_p)
    return -(torch.where(p < least, 0.0, terms) if least else terms).sum(-1)


def mean_entropy(logits: Tensor, *, epsilon: float = 0.0, least: float = 0.0) -> Tensor:
    """mean_i H(p_i), the loss of entropy minimisation: Grandvalet and Bengio, NIPS 2004.

    Args:
        logits: (N, K).
        epsilon: see :func:`entropy`.
        least: see :func:`entropy`.

    Returns:
        A scalar; a mean over rows, so averaging over ranks gives the value of the whole batch.
    """
    return entropy(logits, epsilon=epsilon, least=least).mean()


def mutual_information(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """H(mean_i p_i) - mean_i H(p_i): mutual information of input and prediction, from 0 to log K. Nothing is gathered.

    Args:
        logits: (N, K).
        epsilon: see :func:`entropy`.

    Returns:
        A scalar; high if each prediction is confident and all together are diverse.
    """
    log_p = full_precision(logits).log_softmax(-1)
    marginal = log_p.logsumexp(0)  # log(N mean_i p_i); these are logits of the mean prediction
    return entropy(marginal, epsilon=epsilon) - _entropy(log_p, epsilon).mean()


def marginal_entropy(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """H(mean_i p_i), the diversity of the predictions of a batch. Nothing is gathered.

    Args:
        logits: (N, K).
        epsilon: see :func:`entropy`.

    Returns:
        A scalar, between 0 and log K.
    """
    return entropy(full_precision(logits).log_softmax(-1).logsumexp(0), epsilon=epsilon)


def information_maximisation(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """mean_i H(p_i) - H(mean_i p_i), to be minimised: SHOT, Liang et al., ICML 2020, https://arxiv.org/abs/2002.08546.

    Args:
        logits: (N, K); on several ranks this rank's rows; all ranks' rows are gathered.
        epsilon: see :func:`entropy`.

    Returns:
        A scalar, minus the mutual information of input and prediction.
    """
    return -mutual_information(gather_rows(logits), epsilon=epsilon)


def certainty_weights(logits: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Row weights in proportion to 1 + exp(-H(p_i)) that sum to the number of rows; no gradient flows through them.

    Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018, https://arxiv.org/abs/1705.10667.

    Args:
        logits: (N, K); on several ranks this rank's rows. The sum is over all ranks' rows.
        epsilon: constant added to p inside the logarithm of the entropy (the Transfer-Learning-Library: 1e-5).

    Returns:
        (N,), each between N / (2 N) and 2.
    """
    weights = 1 + (-entropy(logits.detach(), epsilon=epsilon)).exp()
    return weights * (weights.numel() * world_size() / sum_over_ranks(weights.sum()))
