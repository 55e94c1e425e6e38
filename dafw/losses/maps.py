"""Losses of class scores of pixels; padding counts in none of them, and ranks minimise what one process would."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.distributed import sum_over_ranks
from dafw.nn.precision import full_precision
from dafw.problems.ranks import share_of_all, weight_of_rank

Gan = Literal["vanilla", "least_squares"]


def self_information(logits: Tensor) -> Tensor:
    """-p_k log p_k / log K with p = softmax(logits): ADVENT, Vu et al., CVPR 2019, https://arxiv.org/abs/1811.12833.

    Args:
        logits: (n, K, ...).

    Returns:
        (n, K, ...), at least in float32. Its sum over the classes is the entropy over its largest value, from 0 to 1.
    """
    log_p = full_precision(logits).log_softmax(1)
    return log_p.exp() * log_p * (-1 / math.log(logits.shape[1]))


def mean_over_places(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over all places of all maps of all ranks: values (n, h, w) -> scalar, 0 if there is no place.

    Args:
        values: one number for each place.
        valid: (n, h, w) bool, the places that count; ``None``: all do.
    """
    values = full_precision(values)
    if valid is None:
        return weight_of_rank(values.numel(), values) * values.mean()
    return share_of_all(valid.sum().to(values.dtype)) * values.masked_fill(~valid, 0).sum()


def normalised_entropy(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean entropy of the pixels over its largest value, log K: MinEnt of Vu et al., see :func:`self_information`.

    Args:
        logits: (n, K, H, W).
        valid: see :func:`mean_over_places`.

    Returns:
        A scalar from 0 to 1.
    """
    return mean_over_places(self_information(logits).sum(1), valid)


def pixel_information(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """H(mean_i p_i) - mean_i H(p_i) over all pixels i of all ranks: mutual information of pixel and prediction.

    Args:
        logits: (n, K, H, W).
        valid: see :func:`mean_over_places`.

    Returns:
        A scalar from 0 to log K; high if each prediction is confident and all together are diverse.
    """
    log_p = full_precision(logits).log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1)
    if valid is not None:
        p, entropy = p.masked_fill(~valid[:, None], 0), entropy.masked_fill(~valid, 0)
    pixels = entropy.new_full((1,), entropy.numel()) if valid is None else valid.sum().to(entropy.dtype).view(1)
    sums = sum_over_ranks(torch.cat([p.sum((0, 2, 3)), entropy.sum().view(1), pixels]))
    sums = sums[:-1] / sums[-1].detach().clamp_min(1)
    mean = sums[:-1]
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum() - sums[-1]


def domain_loss(scores: Tensor, is_source: bool, valid: Tensor | None = None, gan: Gan = "vanilla") -> Tensor:
    """How far a critic's scores, high for the source, are from what they should be of a domain.

    Args:
        scores: (n, h, w).
        is_source: whether they should say source.
        valid: see :func:`mean_over_places`.
        gan: ``vanilla``, binary cross-entropy of the scores as logits; ``least_squares``, their squared distance from 1
            for the source and 0 for the target.

    Returns:
        A scalar.
    """
    scores = full_precision(scores)
    if gan == "vanilla":
        return mean_over_places(F.softplus(-scores if is_source else scores), valid)
    return mean_over_places((scores - float(is_source)).square(), valid)
