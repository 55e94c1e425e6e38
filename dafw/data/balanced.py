"""Class-balanced rows of a batch: the same classes of the source, by label, and of the target, by pseudo-label."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dafw.data.sampler import Draw

Pool = NDArray[np.int64]


@dataclass(frozen=True)
class Pools:
    """What balanced rows are drawn from.

    Args:
        source: for each class that can be drawn, the (n, 2) pairs of domain and index of its source samples.
        target: likewise of the target's samples, by pseudo-label.
    """

    source: Sequence[Pool]
    target: Sequence[Pool]

    @classmethod
    def of(cls, source: Sequence[NDArray[np.int64]], target: Sequence[NDArray[np.int64]]) -> "Pools":
        """Pools of the classes that both sides have; of all samples of each side as one class, if there is none.

        Args:
            source: labels of each source domain, which come first in the datamodule's order.
            target: pseudo-labels of each target domain; -1 for none.
        """
        where = [
            np.array([(first + d, i) for d, labels in enumerate(side) for i in range(len(labels))], dtype=np.int64)
            for first, side in ((0, source), (len(source), target))
        ]
        labels = [np.concatenate([np.asarray(part, dtype=np.int64) for part in side]) for side in (source, target)]
        both = sorted({int(c) for c in np.intersect1d(labels[0], labels[1]) if c >= 0})
        if not both:
            return cls([where[0]], [where[1]])
        return cls(*([rows[own == c] for c in both] for rows, own in zip(where, labels, strict=True)))


def rows_by_class(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The positions of each class that occurs, in the order of the classes: labels (n,)."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def draw_balanced(pools: Pools, seed: int, step: int, classes: int, per_class: int) -> tuple[list[Draw], list[Draw]]:
    """The balanced rows of global batch ``step``: a pure function of the arguments.

    No class comes twice if there are enough, else each about as often; no sample comes twice for one class if it has
    enough. Every step augments a sample anew.

    Args:
        pools: what to draw from.
        seed: of the draws.
        step: number of the batch.
        classes: C, how many are drawn.
        per_class: P, rows of each, on either side.

    Returns:
        C * P draws of the source and as many of the target, class by class in the same order.
    """
    rng = np.random.default_rng([seed, crc32(b"balanced"), step])
    order = rng.permutation(len(pools.source))
    drawn: tuple[list[Draw], list[Draw]] = ([], [])
    for slot in range(classes):
        for side, pool in zip(drawn, (pools.source, pools.target), strict=True):
            own = pool[order[slot % len(order)]]
            for row in rng.choice(len(own), per_class, replace=len(own) < per_class):
                side.append(Draw(int(own[row, 0]), int(own[row, 1]), -1 - step))
    return drawn
