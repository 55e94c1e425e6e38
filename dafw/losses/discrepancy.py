"""What two label heads make of the same rows."""

from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def classifier_discrepancy(logits: Tensor, other: Tensor) -> Tensor:
    """Mean |p - q| over rows and classes, p and q the softmax of two heads.

    MCD: Saito et al., CVPR 2018, https://arxiv.org/abs/1712.02560.

    Args:
        logits: (N, K) of one head.
        other: (N, K) of the other head, for the same rows.

    Returns:
        A scalar between 0 and 2 / K; a mean over rows, so the ranks' own values average to that of the whole batch.
    """
    return (full_precision(logits).softmax(1) - full_precision(other).softmax(1)).abs().mean()


def class_balance(logits: Tensor, eps: float = 1e-6) -> Tensor:
    """-mean_k log(mean_i p_ik + eps): least, log K, where the classes are predicted equally often.

    The authors' code of MCD for VisDA adds it to the loss of each head, and tllib does so in all its MCD experiments.

    Args:
        logits: (N, K); on several ranks this rank's rows, all of which are gathered.
        eps: added to each class's mean.

    Returns:
        A scalar.
    """
    return -(gather_rows(full_precision(logits).softmax(1)).mean(0) + eps).log().mean()
