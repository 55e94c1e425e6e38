"""What the layers of a network know about the batch that passes through them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from dafw.data.padding import valid_positions
from dafw.nn.draws import row_seeds

BatchRule = Literal["batch", "average", "mixed", "renorm"]


@dataclass(frozen=True)
class StreamStatistics:
    """By what batch normalisation normalises a batch of a stream.

    Let m be the running mean or variance of a layer, b that of the batch over all ranks, and w the ``weight``.

    ========  ======================  =================
    rule      normalised by           running statistics
    ========  ======================  =================
    batch     b, its variance biased  stay
    average   (1 - w) m + w b         become that sum
    mixed     (1 - w) m + w b         stay
    renorm    m                       become that sum
    ========  ======================  =================

    Gradients flow through b. With ``renorm`` the values are those of m, but their gradient is that of a batch which is
    normalised by b: y = ((x - mean b) / std b) r + d, with no gradient in r = std b / std m and in
    d = (mean b - mean m) / std m. One value per channel has no variance: ``batch`` takes m then, and the other rules
    take the running variance for that of the batch.

    Args:
        rule: see the table.
        weight: see the table, in [0, 1].
        biased: whether the variance in b, but for ``batch``, is the biased one, of n rather than n - 1 values.
    """

    rule: BatchRule
    weight: float = 0.1
    biased: bool = False


@dataclass
class BatchLayout:
    """Describes the batch to the layers of one network. All of these layers share one object.

    Deep copies of the network (a moving average, a teacher) share it too, since they see the same batch.

    Attributes:
        num_source: number of leading rows that are source; None: every row is target, as in evaluation.
        sync: whether training statistics are taken over all ranks.
        track: whether training statistics enter the running ones.
        stream: by what batch normalisation normalises, in training mode and in evaluation mode alike, unless its mode
            is frozen; None: its mode says. With ``track`` false, all rules leave the running statistics as they are.
        counted: (N,) bool, the rows whose values make the statistics of a batch of a stream; None: all rows.
        domain: (N,) int64, the domain of each row of the training batch; None if unknown.
        test_batch: whether evaluation normalises a batch by its own statistics (mean and biased variance; on several
            ranks those of this rank's rows). They do not enter the running statistics. One value per channel has no
            variance, and is normalised by the running statistics.
        sizes: (N, 2) int64, height and width of each image within its padding; None if no image is padded.
        canvas: height and width of the padded images.
        rows: number N of rows of the batch; None if unknown.
        clock: seed of the run and number of the step; None outside of a step.
    """

    num_source: int | None = None
    sync: bool = True
    track: bool = True
    stream: StreamStatistics | None = None
    counted: Tensor | None = None
    test_batch: bool = False
    domain: Tensor | None = None
    sizes: Tensor | None = None
    canvas: tuple[int, int] = (0, 0)
    rows: int | None = None
    clock: tuple[int, int] | None = None

    @contextmanager
    def temporarily(self, **values: Any) -> Iterator[None]:
        """Within, these attributes have other values."""
        previous = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(previous)

    def inside(self, rows: slice, height: int, width: int) -> Tensor | None:
        """The positions of a feature map that no padding covers: (n, 1, height, width) bool; None without padding.

        A position counts if the image reaches into it.

        Args:
            rows: rows of the batch.
            height: height of the map.
            width: width of the map.
        """
        if self.sizes is None:
            return None
        return valid_positions(self.sizes[rows], self.canvas, (height, width))[:, None]

    def seeds(self, count: int) -> list[int] | None:
        """A seed for each of ``count`` rows, for random choices that concern a row alone; None outside of a step.

        It depends on the seed of the run, the step, the row's domain being a source or not, and the row's place among
        those. So every pass of a step has the same seeds, and the rows of two ranks have those of one process.
        """
        if self.clock is None:
            return None
        sources = self.num_source or 0
        return [*row_seeds(*self.clock, "source", sources), *row_seeds(*self.clock, "target", count - sources)]

    def domain_of(self, count: int) -> Tensor | None:
        """The domains of the ``count`` rows of a pass over the whole batch or over its source rows alone.

        None for any other pass, and if the domains are unknown.
        """
        if self.domain is None or count == len(self.domain):
            return self.domain
        return self.domain[:count] if count == self.num_source else None

    @contextmanager
    def untracked(self) -> Iterator[None]:
        """Within, running statistics stay as they are: for another pass of a batch that has been counted."""
        with self.temporarily(track=False):
            yield

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
