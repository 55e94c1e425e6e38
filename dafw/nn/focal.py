"""The focal loss of classes that exclude each other."""

import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision


def focal_cross_entropy(logits: Tensor, labels: Tensor, gamma: float = 1.5, reduction: str = "mean") -> Tensor:
    """(1 - p)^gamma times the cross-entropy, where p is the probability of the right class: what is easy counts less.

    Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002, for several classes as Unbiased Teacher has it: Liu et al.,
    ICLR 2021, https://arxiv.org/abs/2102.09480.

    Args:
        logits: (R, C).
        labels: (R,) int64.
        gamma: 0 is the cross-entropy (Unbiased Teacher: 1.5).
        reduction: ``mean`` and ``sum`` give a scalar, ``none`` (R,). The mean is over all rows, whatever they count.
    """
    if gamma == 0:
        return F.cross_entropy(logits, labels, reduction=reduction)
    entropy = F.cross_entropy(full_precision(logits), labels, reduction="none")
    each = (-(-entropy).expm1()).clamp_min(1e-12) ** gamma * entropy
    return each if reduction == "none" else each.sum() if reduction == "sum" else each.mean()
