"""What a teacher says of target images, and how a student's scores differ from the teacher's."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.geometry import bilinear, invert, move_boxes
from dafw.data.padding import valid_positions
from dafw.losses.soft_labels import soft_class_loss, soft_move_loss, soft_score_loss
from dafw.methods.base import Losses
from dafw.problems.outputs import BoxOutputs

#: The score of a position of the student's view that the teacher's view does not show.
UNSEEN = -20.0


class Lesson(NamedTuple):
    """What a teacher says of the n target images of a step.

    Attributes:
        labels: pseudo-labels in the frame of the strong views: ``boxes`` (k, 4), ``labels`` (k,) and ``scores`` (k,).
        weights: (n,), 1 for an image with a pseudo-label, else 0.
        outputs: of the teacher, in the frame of the weak views.
        maps: (n, 2, 3), from the weak views to the strong ones.
        limits: (n, 2), height and width of the weak views.
    """

    labels: list[dict[str, Tensor]]
    weights: Tensor
    outputs: BoxOutputs
    maps: Tensor
    limits: Tensor


def strong_rows(batch: Batch, rows: slice) -> tuple[Tensor, Tensor | None]:
    """The strong views of some rows of a batch, and their sizes within their padding."""
    sizes = batch.view_sizes.get("strong")
    return batch.views["strong"][rows], None if sizes is None else sizes[rows]


def limits_of(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Height and width of each image (n, 2); of all of ``x`` (n, C, H, W) if no image is padded."""
    if sizes is not None:
        return sizes
    return torch.stack([torch.full((len(x),), side, device=x.device) for side in x.shape[2:]], 1)


def soft_regions(detector: Any, teacher: Any, target: BoxOutputs, lesson: Lesson, count: int) -> Losses:
    """How the student's classes and moves of its likeliest regions differ from the teacher's of the same regions.

    Args:
        detector: the student.
        teacher: the teacher's detector.
        target: the student's outputs of strong views of n images.
        lesson: the teacher's of weak views.
        count: regions of an image.

    Returns:
        ``soft_class``, ``soft_box``, and ``moves``, the sum of all of the student's moves.
    """
    proposals = detector.proposals(target, count)
    back = invert(lesson.maps)
    seen = [move_boxes(*parts) for parts in zip(proposals, back, lesson.limits, strict=True)]
    counts = torch.cat([(boxes[:, 2:] - boxes[:, :2] >= 1).all(1) for boxes in seen])
    own = detector.regions(target, proposals)
    with torch.no_grad():
        theirs = teacher.regions(lesson.outputs, seen)
    signs = lesson.maps.diagonal(dim1=1, dim2=2).sign()[own.image]
    return {
        "soft_class": soft_class_loss(own.logits, theirs.logits, counts),
        "soft_box": soft_move_loss(own.deltas, theirs.deltas, theirs.logits, counts, signs),
        "moves": own.deltas.sum(),
    }


def soft_positions(target: BoxOutputs, lesson: Lesson) -> Tensor:
    """How the student's scores of positions differ from the teacher's, which the affine maps carry to its frame.

    The scores are those of objects, or of the classes for a detector without proposals of its own.
    """
    student, teacher, counts = [], [], []
    name = "objectness" if "objectness" in target.maps else "classes"
    for own, theirs in zip(target.maps[name], lesson.outputs.maps[name], strict=True):
        size = (int(own.shape[2]), int(own.shape[3]))
        steps = theirs.shape[3] / lesson.outputs.canvas[1], theirs.shape[2] / lesson.outputs.canvas[0]
        scale = lesson.maps.new_tensor([[1.0, 1.0, step] for step in steps])
        carried = bilinear(theirs, lesson.maps * scale, size, UNSEEN)
        inside = torch.ones(len(own), *size, dtype=torch.bool, device=own.device)
        if target.sizes is not None:
            inside = valid_positions(target.sizes, target.canvas, size)
        student.append(own.flatten())
        teacher.append(carried.flatten())
        counts.append(inside[:, None].expand_as(own).flatten())
    return soft_score_loss(torch.cat(student), torch.cat(teacher), torch.cat(counts))
