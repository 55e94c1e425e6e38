"""Outputs from which accuracy is estimated without labels of a target."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dafw.data.roles import Evaluation
from dafw.estimation.source_evidence import MOST_FEATURES, MOST_SAMPLES
from dafw.nn.distributed import gather_unequal


class Loader(NamedTuple):
    """What one loader serves.

    Attributes:
        name: of the domain.
        size: number of its samples.
        is_source: whether it serves a source, with labels.
    """

    name: str
    size: int
    is_source: bool = False

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """The loader of an evaluation."""
        return cls(evaluation.domain.name, len(evaluation.domain), evaluation.is_source)


class Rows(NamedTuple):
    """Outputs for the samples of one loader, on the CPU, in their domain's order.

    Attributes:
        positions: (m,), of the samples in their domain.
        logits: (m, K) float32.
        features: (f, d) float32, of some of the samples, evenly spaced.
        labels: (m,), of a source; empty for a target.
    """

    positions: Tensor
    logits: Tensor
    features: Tensor
    labels: Tensor


class ForEstimates:
    """Collects over the batches and ranks of an evaluation what estimates need. No label of a target is given to it.

    Of the sources together at most :data:`~dafw.estimation.source_evidence.MOST_SAMPLES` samples are kept, evenly
    spaced; of each target all.

    Args:
        loaders: what the loaders serve.

    Attributes:
        rows: after :meth:`gather`, by the position of the loader what it gave. A loader without a sample has nothing.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders
        total = sum(one.size for one in loaders if one.is_source)
        self.every = [_step(total, MOST_SAMPLES) if one.is_source else 1 for one in loaders]
        self.features_of_every = [_step(total if one.is_source else one.size, MOST_FEATURES) for one in loaders]
        self.batches: list[list[tuple[Tensor, ...]]] = [[] for _ in loaders]
        self.rows: dict[int, Rows] = {}

    def add(self, position: int, evidence: tuple[Tensor, Tensor, Tensor], index: Tensor, y: Tensor | None) -> None:
        """Takes one batch.

        Args:
            position: of its loader.
            evidence: features (n, d), logits (n, K) and rows (n,), see :meth:`.Problem.evidence`.
            index: (n,), positions of its samples in their domain.
            y: (n,), the labels of a source's samples; ``None`` for a target.
        """
        features, logits, _ = evidence
        kept, shown = index % self.every[position] == 0, index % self.features_of_every[position] == 0
        parts = index[kept], logits[kept].float(), index[shown], features[shown].float()
        self.batches[position].append(parts if y is None else (*parts, y[kept]))

    def gather(self) -> None:
        """Joins the shares of all ranks."""
        for position, batches in enumerate(self.batches):
            if not batches:
                continue
            joined = [gather_unequal(torch.cat(one)).cpu() for one in zip(*batches, strict=True)]
            index, logits, shown, features = joined[:4]
            order = index.argsort()
            labels = joined[4][order] if self._source(position) else index[:0]
            self.rows[position] = Rows(index[order], logits[order], features[shown.argsort()], labels)
            batches.clear()

    def of_targets(self) -> dict[str, Rows]:
        """After :meth:`gather`, the outputs for each target by its name."""
        return {self.loaders[position].name: rows for position, rows in self.rows.items() if not self._source(position)}

    def of_sources(self) -> dict[int, Rows]:
        """After :meth:`gather`, the outputs for each source by the position of its loader."""
        return {position: rows for position, rows in self.rows.items() if self._source(position)}

    def _source(self, position: int) -> bool:
        return self.loaders[position].is_source


def _step(size: int, most: int) -> int:
    """Every so many samples, so that no more than ``most`` of ``size`` are kept."""
    return max(1, -(-size // most))
