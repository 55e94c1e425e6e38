"""Losses that compare the predictions of two label heads for the same rows."""

from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def classifier_discrepancy(logits: Tensor, other: Tensor) -> Tensor:
    """Mean |p - q| over rows and classes, where p and q are the softmax outputs of two heads.

    MCD: Saito et al., CVPR 2018, https://arxiv.org/abs/1712.02560.

    Args:
        logits: (N, K) of one head.
        other: (N, K) of the other head, for the same rows.

    Returns:
        A scalar between 0 and 2 / K; a mean over rows, so averaging over ranks gives the value of the whole batch.
    """
    return (full_precision(logits).softmax(1) - full_precision(other).softmax(1)).abs().mean()


def class_balance(logits: Tensor, eps: float = 1e-6) -> Tensor:
    """-mean_k log(mean_i p_ik + eps): minimal, with the value log K, if all classes are predicted equally often.

    The authors' code of MCD for VisDA adds it to the loss of each head. tllib does so in all its MCD experiments.

    Args:
        logits: (N, K); on several ranks this rank's rows; all ranks' rows are gathered.
        eps: constant added to each class's mean.

    Returns:
        A scalar.
    """
    return -(gather_rows(full_precision(logits).softmax(1)).mean(0) + eps).log().mean()
