"""Detections of one image or of many beside the labelled boxes, on plain arrays: VOC, GWHD and kinds of errors.

Boxes are rows of x1, y1, x2, y2 in pixels. Their sides are x2 - x1 and y2 - y1: a pixel's right edge is one more than
its left one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RIGHT = 0.5
"""The overlap from which a detection is right."""
NEAR = 0.1
"""The overlap from which a detection that is not right is loose."""
LIKELY = 0.5
"""Detections of higher scores are those that count where a curve over all scores is no matter."""
ERRORS = ("missed", "wrong_class", "loose", "background", "duplicate")


@dataclass(frozen=True)
class Image:
    """Detections and labels of one image.

    Attributes:
        boxes: (d, 4) detected boxes.
        scores: (d,) their scores.
        labels: (d,) their classes.
        true_boxes: (g, 4) labelled boxes.
        true_labels: (g,) their classes.
        crowd: (g,) bool: regions that are no single object. What lies in them is neither right nor wrong.
    """

    boxes: Array
    scores: Array
    labels: Array
    true_boxes: Array
    true_labels: Array
    crowd: Array


@dataclass(frozen=True)
class Match:
    """What each of d detections of an image found, in the order of falling scores.

    Attributes:
        order: (d,) positions of the detections.
        best: (d,) position of the labelled box of the same class with the largest overlap; -1 without one.
        overlap: (d,) this overlap, 0 without one.
        other: (d,) the largest overlap with a labelled box of another class.
        right: (d,) bool, whether it is the first one to find its box.
        ignored: (d,) bool, whether what it found is a crowd.
    """

    order: Array
    best: Array
    overlap: Array
    other: Array
    right: Array
    ignored: Array


def overlaps(one: Array, other: Array) -> Array:
    """Intersections over unions of boxes (m, 4) and (n, 4) -> (m, n)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    found: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def match(image: Image) -> Match:
    """Gives each detection the labelled box of its class that it overlaps most, as VOC's code does.

    It is right if the overlap is at least :data:`RIGHT` and no detection of a higher score has the same box.
    """
    order = np.argsort(-image.scores, kind="stable")
    found, classes = len(order), image.labels[order]
    if not len(image.true_boxes):
        zeros, never = np.zeros(found), np.zeros(found, bool)
        return Match(order, np.full(found, -1), zeros, zeros, never, never)
    shared = overlaps(image.boxes[order], image.true_boxes)
    same = classes[:, None] == image.true_labels[None]
    own = np.where(same, shared, -1.0)
    best = own.argmax(1)
    overlap = own.max(1)
    best = np.where(overlap < 0, -1, best)
    reaches = overlap >= RIGHT
    ignored = reaches & image.crowd[best]
    right = np.zeros(found, bool)
    counts = np.flatnonzero(reaches & ~ignored)
    right[counts[np.unique(best[counts], return_index=True)[1]]] = True
    other = np.where(same | image.crowd[None], 0.0, shared).max(1)
    return Match(order, best, overlap.clip(0), other, right, ignored)


def voc_precision(
    images: Sequence[Image], matches: Sequence[Match], num_classes: int, form: Literal["voc07", "voc"]
) -> Array:
    """VOC's average precision of each class at an overlap of 0.5, (K,); nan for a class without a labelled box.

    Args:
        images: all images.
        matches: by :func:`match`.
        num_classes: K.
        form: ``voc07``, the mean over the recalls 0, 0.1, ..., 1; ``voc``, the area under the curve.
    """
    scores, labels, right = (
        np.concatenate([np.empty(0), *parts])
        for parts in (
            [image.scores[one.order][~one.ignored] for image, one in zip(images, matches, strict=True)],
            [image.labels[one.order][~one.ignored] for image, one in zip(images, matches, strict=True)],
            [one.right[~one.ignored] for one in matches],
        )
    )
    truth = np.concatenate([np.empty(0), *(image.true_labels[~image.crowd] for image in images)])
    order = np.argsort(-scores, kind="stable")
    found = np.full(num_classes, np.nan)
    for label in range(num_classes):
        if count := int((truth == label).sum()):
            hits = np.cumsum(right[order][labels[order] == label])
            found[label] = average_precision(hits / count, hits / np.arange(1, len(hits) + 1), form)
    return found


def average_precision(recall: Array, precision: Array, form: Literal["voc07", "voc"]) -> float:
    """The average of the largest precision at each recall or a higher one.

    Everingham et al., IJCV 88 (2010), https://doi.org/10.1007/s11263-009-0275-4, section 4.2, and VOC's code of 2010.

    Args:
        recall: (d,) after each detection, the highest scores first.
        precision: (d,) at the same places.
        form: see :func:`voc_precision`.

    Returns:
        In [0, 1]; 0 without a detection.
    """
    best = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    if form == "voc07":
        return float(best[np.searchsorted(recall, np.arange(11) / 10)].mean())
    return float((np.diff(recall, prepend=0.0) * best[:-1]).sum())


def accuracy(image: Image, found: Match) -> float:
    """Right detections over all likely detections and labelled boxes, tp / (tp + fp + fn); 1 if there is neither.

    David et al., Global Wheat Head Detection 2021, https://arxiv.org/abs/2105.07660, and WILDS's code.
    """
    likely = image.scores[found.order] > LIKELY
    right = int((found.right & likely).sum())
    wrong = int((likely & ~found.right & ~found.ignored).sum())
    missed = int((~image.crowd).sum()) - right
    return right / (right + wrong + missed) if right + wrong + missed else 1.0


def errors(image: Image, found: Match) -> Array:
    """How many errors of each kind in :data:`ERRORS` an image has, (5,); likely detections count alone.

    A detection that is not right is a duplicate if its box was found by another one, of a wrong class if it fits a box
    of another class, loose if it overlaps one of its own class a little, and background otherwise. A labelled box is
    missed if none of its class is right or loose on it and none of another class fits it. After Bolya et al., TIDE,
    ECCV 2020, https://arxiv.org/abs/2008.08115, where loose detections are called localisation errors.
    """
    counts = (image.scores[found.order] > LIKELY) & ~found.ignored
    wrong = counts & ~found.right
    duplicate = wrong & (found.overlap >= RIGHT)
    other = wrong & ~duplicate & (found.other >= RIGHT)
    loose = wrong & ~duplicate & ~other & (found.overlap >= NEAR)
    seen = np.zeros(len(image.true_boxes), bool)
    if len(seen):
        seen[found.best[counts & found.right | loose]] = True
        shared = overlaps(image.boxes[found.order][other], image.true_boxes)
        seen[(shared >= RIGHT).any(0)] = True
    missed = (~seen & ~image.crowd).sum()
    return np.array([missed, other.sum(), loose.sum(), (wrong & ~duplicate & ~other & ~loose).sum(), duplicate.sum()])
