"""Losses of one-vs-all classifiers: for each class a binary classifier says "this class" or "another class"."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.nn.precision import full_precision


def one_vs_all(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary loss of the own class's classifier plus that of the other class's classifier that is most wrong.

    mean_i [-log p_i[y_i] + max_{k != y_i} -log(1 - p_i[k])] with p_i[k] = softmax(logits_i[k])[1]: Saito and Saenko,
    ICCV 2021, https://arxiv.org/abs/2104.03344. The logarithms are exact; the authors' code adds 1e-8 to each
    probability.

    Args:
        logits: (N, K, 2), for each class's classifier the logits of "another class" and "this class", in this order.
        labels: (N,) int64.

    Returns:
        A scalar, 0 or more; a mean over rows, so averaging over ranks gives the value of the whole batch.

    Raises:
        ValueError: ``logits`` is not (N, K, 2).
    """
    scores = this_class(logits)
    own = labels[:, None]
    hardest = scores.scatter(1, own, float("-inf")).max(1).values
    return F.softplus(-scores.gather(1, own)).mean() + F.softplus(hardest).mean()


def this_class(logits: Tensor) -> Tensor:
    """Log odds of "this class", (N, K), in at least 32 bits.

    Args:
        logits: (N, K, 2), see :func:`one_vs_all`.

    Raises:
        ValueError: ``logits`` is not (N, K, 2).
    """
    if logits.ndim != 3 or logits.shape[2] != 2:
        raise ValueError(f"logits must be (N, K, 2), not {tuple(logits.shape)}")
    another, this = full_precision(logits).unbind(2)
    return this - another


def another_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Probability of "another class" for each row, from the binary classifier of the class given for that row.

    Args:
        logits: (N, K, 2), see :func:`one_vs_all`.
        classes: (N,) int64.

    Returns:
        (N,), in [0, 1].

    Raises:
        ValueError: ``logits`` is not (N, K, 2).
    """
    return torch.sigmoid(-this_class(logits).gather(1, classes[:, None]).squeeze(1))
