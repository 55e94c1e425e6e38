"""Pseudo-labels: learning from confident predictions of the network itself."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.nn.precision import full_precision


def confident_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The predicted classes, and a mask of the confident predictions.

    Args:
        logits: (N, K); no gradient flows into them.
        threshold: least probability of a confident prediction.

    Returns:
        Classes (N,) int64, and (N,) True where max_k p_k >= threshold.
    """
    confidence, classes = full_precision(logits.detach()).softmax(1).max(1)
    return classes, confidence >= threshold


def confident_cross_entropy(logits: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """1/N sum_i 1[max_k q_ik >= threshold] CE(p_i, argmax_k q_ik), where q are the teacher's probabilities.

    FixMatch: Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685, equation 4. The sum is divided by the number
    of all rows, not of the confident ones, so few confident rows weigh little.

    Args:
        logits: (N, K), the logits that learn, for instance of strongly augmented images.
        teacher: (N, K), the logits that give the pseudo-labels, for instance of the same images with weak augmentation.
            No gradient flows into them.
        threshold: least probability of a confident prediction (paper: 0.95; tllib: 0.9).

    Returns:
        A scalar; a mean over rows, so averaging over ranks gives the value of the whole batch.
    """
    classes, sure = confident_labels(teacher, threshold)
    each = F.cross_entropy(full_precision(logits), classes, reduction="none")
    return torch.where(sure, each, 0.0).mean()
