"""Boxes with classes, of all samples of a domain in a few arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class BoxLabels(Sequence[dict[str, Tensor]]):
    """The boxes of n samples; item: ``boxes`` (k, 4) float32, ``labels`` (k,) int64, and ``crowd`` (k,) bool if known.

    Args:
        boxes: (b, 4) float32 of all samples, one after the other, as x1, y1, x2, y2 in pixels.
        labels: (b,) int64, the class of each box.
        ends: (n,) int64, behind which box each sample ends.
        crowd: (b,) bool, the boxes that no metric counts as missed or as wrong; ``None`` if there is none of that kind.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ends: NDArray[np.int64]
    crowd: NDArray[np.bool_] | None = None

    @classmethod
    def of_counts(
        cls,
        boxes: NDArray[Any],
        labels: NDArray[Any],
        counts: Iterable[int],
        crowd: NDArray[np.bool_] | None = None,
    ) -> "BoxLabels":
        """The boxes of samples with so many boxes each."""
        ends = np.cumsum(np.asarray([*counts], np.int64))
        return cls(boxes.reshape(-1, 4).astype(np.float32), labels.astype(np.int64), ends, crowd)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        own = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
        found = {"boxes": torch.tensor(self.boxes[own]), "labels": torch.tensor(self.labels[own])}
        return found if self.crowd is None else {**found, "crowd": torch.tensor(self.crowd[own])}

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of boxes of each sample, (n,)."""
        return np.diff(self.ends, prepend=0)

    def subset(self, indices: NDArray[np.int64]) -> "BoxLabels":
        """The labels of the samples at ``indices``, in that order."""
        counts = self.counts[indices]
        starts = self.ends[indices] - counts
        ends = np.cumsum(counts)
        rows = np.repeat(starts - (ends - counts), counts) + np.arange(counts.sum())
        crowd = None if self.crowd is None else self.crowd[rows]
        return BoxLabels(self.boxes[rows], self.labels[rows], ends, crowd)

    def without_crowd(self) -> "BoxLabels":
        """The same samples without those boxes, as they are trained on."""
        if self.crowd is None:
            return self
        kept = ~self.crowd
        owner = np.repeat(np.arange(len(self)), self.counts)[kept]
        counts = np.bincount(owner, minlength=len(self))
        return BoxLabels(self.boxes[kept], self.labels[kept], np.cumsum(counts))
