"""Soft labels: a student's scores of boxes and positions against the probabilities that a teacher gives them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision
from dafw.problems.ranks import share_of_all


def soft_class_loss(logits: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    """The cross-entropy of the student's classes with the teacher's probabilities, a mean over boxes.

    Kay et al., Align and Distill, TMLR 2025, https://arxiv.org/abs/2403.12029, as in the authors' code: the soft labels
    are not sharpened.

    Args:
        logits: (R, C), the scores that the student gives to R boxes.
        teacher: (R, C), the scores that the teacher gives to the same boxes; no gradient flows into them.
        counts: (R,) bool, the boxes that count.

    Returns:
        A scalar, 0 if no box counts. The ranks' mean is the mean over the boxes of all ranks.
    """
    likely = full_precision(teacher.detach()).softmax(1)
    each = -(likely * full_precision(logits).log_softmax(1)).sum(1)
    return share_of_all(counts.sum().to(each.dtype)) * each.masked_fill(~counts, 0).sum()


def soft_move_loss(moves: Tensor, teacher: Tensor, scores: Tensor, counts: Tensor, signs: Tensor) -> Tensor:
    """The distance of the student's moves of boxes from the teacher's, where the teacher sees an object.

    sum over these boxes of |m - t|_1 for the moves of the class that the teacher finds most probable, divided by the
    number of all boxes that count: Align and Distill, as in the authors' code (see :func:`soft_class_loss`).

    Args:
        moves: (R, 4 C), the student's, four for each class: right and down, as shares of the box's sides, and the
            logarithms of the changes of the sides. Class 0 is the background.
        teacher: (R, 4 C), the teacher's; no gradient flows into them.
        scores: (R, C), the teacher's scores of the classes.
        counts: (R,) bool, the boxes that count.
        signs: (R, 2), 1, or -1 where the student's view is mirrored from left to right, and from top to bottom.

    Returns:
        A scalar, see :func:`soft_class_loss`.
    """
    rows, classes = torch.arange(len(scores), device=scores.device), scores.argmax(1)
    own, theirs = (full_precision(one).reshape(len(scores), -1, 4)[rows, classes] for one in (moves, teacher.detach()))
    theirs = torch.cat([theirs[:, :2] * signs, theirs[:, 2:]], 1)
    each = (own - theirs).abs().sum(1).masked_fill(~(counts & (classes > 0)), 0)
    return share_of_all(counts.sum().to(each.dtype)) * each.sum()


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
