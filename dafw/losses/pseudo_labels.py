"""Learning from one's own confident predictions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.nn.precision import full_precision


def confident_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The predicted classes, and which of them are sure.

    Args:
        logits: (N, K); no gradient flows into them.
        threshold: least probability of a prediction that counts.

    Returns:
        Classes (N,) int64, and (N,) True where max_k p_k >= threshold.
    """
    confidence, classes = full_precision(logits.detach()).softmax(1).max(1)
    return classes, confidence >= threshold


def confident_cross_entropy(logits: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """1/N sum_i 1[max_k q_ik >= threshold] CE(p_i, argmax_k q_ik), with q of the teacher.

    FixMatch: Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685, equation 4. The sum is divided by all rows,
    not by the confident ones: the fewer there are, the less they weigh.

    Args:
        logits: (N, K), what learns, for instance those of strongly augmented images.
        teacher: (N, K), what decides, for instance those of the same images augmented weakly. Gets no gradient.
        threshold: least probability of a prediction that counts (paper: 0.95; tllib: 0.9).

    Returns:
        A scalar; a mean over rows, so the ranks' own values average to that of the whole batch.
    """
    classes, sure = confident_labels(teacher, threshold)
    each = F.cross_entropy(full_precision(logits), classes, reduction="none")
    return torch.where(sure, each, 0.0).mean()
