"""What an estimator of accuracy sees, its estimate, and the range of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL = 1.959963984540054
"""The normal quantile of a two-sided range of 95 %."""
REPLICATES = 200
"""How often samples are drawn anew for the range of an estimate."""


@dataclass(frozen=True)
class Estimate:
    """An accuracy that was estimated without labels, as a fraction.

    Attributes:
        value: the estimate; nan if it does not exist.
        low: the lower end of its range.
        high: the upper end of its range.
    """

    value: float
    low: float
    high: float


def array(values: Any) -> Floats:
    """A tensor, array or list as float64. A tensor loses its gradient, and is copied to the CPU."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class Scores:
    """What the class scores of n samples say.

    Attributes:
        confidence: (n,), the largest probability.
        negative_entropy: (n,), sum_k p_k log p_k in nats, from -log K to 0.
        prediction: (n,) int64, the class of the largest probability.
    """

    confidence: Floats
    negative_entropy: Floats
    prediction: Integers

    @classmethod
    def of(cls, logits: Any) -> Self:
        """The scores of logits (n, K)."""
        x = array(logits)
        x = x - x.max(1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        p = np.exp(log_p)
        return cls(p.max(1), np.where(p > 0, p * log_p, 0.0).sum(1), x.argmax(1))

    def __len__(self) -> int:
        return len(self.prediction)

    def __getitem__(self, rows: Any) -> Self:
        return type(self)(self.confidence[rows], self.negative_entropy[rows], self.prediction[rows])


@dataclass(frozen=True)
class Observed:
    """All that an estimator may see. No label of the target is part of it.

    Attributes:
        source: of m held-out source samples.
        labels: (m,) int64, their labels.
        target: of n target samples.
        others: (M, n) int64, the classes that M other models predict for the same target samples.
        shared: (M + 1, c) int64, the classes that this model and then the others predict for those held-out source
            samples that all of them keep.
        shared_labels: (c,) int64, the labels of these samples.
    """

    source: Scores
    labels: Integers
    target: Scores
    others: Integers
    shared: Integers
    shared_labels: Integers

    @classmethod
    def of(cls, source_logits: Any, labels: Any, logits: Any) -> Self:
        """What a single model's outputs show.

        Args:
            source_logits: (m, K), of held-out source samples.
            labels: (m,), their labels.
            logits: (n, K), of target samples.
        """
        none = np.empty((0, len(logits)), np.int64)
        source, target = Scores.of(source_logits), Scores.of(logits)
        known = array(labels).astype(np.int64)
        return cls(source, known, target, none, np.empty((1, 0), np.int64), np.empty(0, np.int64))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(m,), whether the model is right about each held-out source sample."""
        right: NDArray[np.bool_] = self.source.prediction == self.labels
        return right

    def drawn_anew(self, rng: np.random.Generator) -> Self:
        """As many source, target and shared source samples, drawn with replacement."""
        m, n, c = (rng.integers(0, max(size, 1), size) for size in (len(self.labels), len(self.target), self.size))
        return replace(
            self,
            source=self.source[m],
            labels=self.labels[m],
            target=self.target[n],
            others=self.others[:, n],
            shared=self.shared[:, c],
            shared_labels=self.shared_labels[c],
        )

    @property
    def size(self) -> int:
        """The number c of shared source samples."""
        return len(self.shared_labels)


class Estimator(ABC):
    """A way to estimate the accuracy on the target.

    An estimate that does not exist is nan, never an exception.

    Attributes:
        name: its key in results and tables.
        title: what it is called in words.
        needs_models: how many other models must have predicted the same samples.
        reference: the paper that proposed it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs_models: ClassVar[int] = 0
    reference: ClassVar[str]

    @abstractmethod
    def value(self, observed: Observed) -> float:
        """The estimate, a fraction; nan if it does not exist."""


def drawn(observed: Observed, seed: int) -> Iterator[Observed]:
    """:data:`REPLICATES` bootstrap samples, one after the other."""
    rng = np.random.default_rng(seed)
    for _ in range(REPLICATES):
        yield observed.drawn_anew(rng)


def with_range(value: float, replicates: Sequence[float], n: int) -> Estimate:
    """An estimate with Wilson's 95 % interval of a share of n samples.

    If the bootstrap varies more than such a share does, because there are few source samples for example, the interval
    is that of a share of fewer samples, whose variance is the bootstrap's.

    Args:
        value: the estimate, a fraction; it is cut to [0, 1].
        replicates: the same estimate from bootstrap samples of source and target; nan among them is left out.
        n: the number of target samples.
    """
    found = np.asarray([one for one in replicates if np.isfinite(one)])
    if not np.isfinite(value) or not n or 2 * len(found) < len(replicates):
        return Estimate(np.nan, np.nan, np.nan)
    p = min(max(float(value), 0.0), 1.0)
    smoothed = (p * n + 2) / (n + 4)
    variance = float(found.var(ddof=1)) if len(found) > 1 else 0.0
    count = n if not variance else min(n, smoothed * (1 - smoothed) / variance)
    square = LEVEL**2
    middle = (p + square / (2 * count)) / (1 + square / count)
    half = LEVEL / (1 + square / count) * float(np.sqrt(p * (1 - p) / count + square / (4 * count**2)))
    return Estimate(p, max(middle - half, 0.0), min(middle + half, 1.0))
