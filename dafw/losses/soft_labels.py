"""Soft labels: a student's scores of boxes and positions against the probabilities that a teacher gives them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision
from dafw.problems.ranks import share_of_all


def soft_class_loss(logits: Tensor, teacher: Tensor, counts: Tensor, exclusive: bool = True) -> Tensor:
    """The cross-entropy of the student's classes with the teacher's probabilities, a mean over boxes.

    Kay et al., Align and Distill, TMLR 2025, https://arxiv.org/abs/2403.12029, as in the authors' code: the soft labels
    are not sharpened.

    Args:
        logits: (R, C), the scores that the student gives to R boxes.
        teacher: (R, C), the scores that the teacher gives to the same boxes; no gradient flows into them.
        counts: (R,) bool, the boxes that count.
        exclusive: whether the C classes exclude each other (softmax). Otherwise each has a probability of its own, and
            the loss of a box is a sum over them.

    Returns:
        A scalar, 0 if no box counts. The ranks' mean is the mean over the boxes of all ranks.
    """
    student, teacher = full_precision(logits), full_precision(teacher.detach())
    if exclusive:
        each = -(teacher.softmax(1) * student.log_softmax(1)).sum(1)
    else:
        each = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none").sum(1)
    return share_of_all(counts.sum().to(each.dtype)) * each.masked_fill(~counts, 0).sum()


def soft_score_loss(scores: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    """The binary cross-entropy of scores with the teacher's probabilities q; likely objects weigh as much as the rest.

    1/2 sum_i q_i b_i / max(1, sum_i q_i) + 1/2 sum_i (1 - q_i) b_i / max(1, sum_i (1 - q_i)), where b_i is the
    cross-entropy of score i. Nearly all positions hold no object, so a plain mean over them would say little of
    objects. Align and Distill (see :func:`soft_class_loss`) draws positions by hard labels, at most half of them
    positive. This form is ours: it has the same balance, and draws nothing.

    Args:
        scores: (M,), the student's, as logits.
        teacher: (M,), the teacher's; no gradient flows into them.
        counts: (M,) bool, the scores that count.

    Returns:
        A scalar. The ranks' mean is the value for the positions of all ranks.
    """
    student, likely = full_precision(scores), full_precision(teacher.detach()).sigmoid()
    each = F.binary_cross_entropy_with_logits(student, likely, reduction="none").masked_fill(~counts, 0)
    halves = [torch.where(counts, weight, 0) for weight in (likely, 1 - likely)]
    return sum(0.5 * share_of_all(half.sum()) * (half * each).sum() for half in halves)  # type: ignore[return-value]
