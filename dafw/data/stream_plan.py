"""The order of a stream: which sample stands at each position, as a function of the seed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from dafw.data.domain import Domain
from dafw.data.sampler import Draw, permutation
from dafw.data.target_stream import TargetStream
from dafw.errors import UserError

MOST_SLOTS = 100
"""Greatest number of slots of a correlated segment (RoTTA's code)."""

Numbers = NDArray[np.int64]


class Rows(NamedTuple):
    """Samples in an order: for each its domain, its number in the domain, and how often it came before, all (n,)."""

    domain: Numbers
    index: Numbers  # type: ignore[assignment]
    visit: Numbers

    def at(self, chosen: Numbers) -> "Rows":
        """The rows at some positions."""
        return Rows(*(part[chosen] for part in self))


@dataclass(frozen=True)
class StreamPlan:
    """A stream from its first to its last sample.

    Attributes:
        rows: the N samples in their order. Domains are numbers in the order of the datamodule's training domains.
        segments: names of the segments: that of the domain, or ``mixed``.
        starts: for each segment the position of its first sample.
        batches: for each batch the position of its first sample; no batch crosses the start of a segment.
        window: number of latest samples that a step sees; 1: those of its batch alone.
        keeps_window: whether a window reaches back over the start of a segment.
    """

    rows: Rows
    segments: tuple[str, ...]
    starts: Numbers
    batches: Numbers
    window: int = 1
    keeps_window: bool = True

    def __len__(self) -> int:
        return len(self.rows.domain)

    @property
    def first_batches(self) -> list[int]:
        """For each segment the number of its first batch."""
        return [int(number) for number in np.searchsorted(self.batches, self.starts)]

    @property
    def segment(self) -> Numbers:
        """For each sample the number of its segment, (N,)."""
        return np.searchsorted(self.starts, np.arange(len(self)), side="right") - 1

    @property
    def batch(self) -> Numbers:
        """For each sample the number of its batch, (N,)."""
        return np.searchsorted(self.batches, np.arange(len(self)), side="right") - 1

    def named_batches(self) -> list[str]:
        """For each batch the name of its segment."""
        return [self.segments[number] for number in np.searchsorted(self.starts, self.batches, side="right") - 1]

    def sizes(self) -> Numbers:
        """The number of samples of each batch."""
        return np.diff(np.append(self.batches, len(self)))

    def draws(self, step: int) -> list[Draw]:
        """What batch ``step`` holds: the earlier samples of the window, then those that are served."""
        first = int(self.batches[step])
        end = int(self.batches[step + 1]) if step + 1 < len(self.batches) else len(self)
        back = max(0, first + 1 - self.window)
        if not self.keeps_window:
            back = max(back, int(self.starts[np.searchsorted(self.starts, first, side="right") - 1]))
        rows = zip(range(back, end), *(part[back:end].tolist() for part in self.rows), strict=True)
        return [Draw(domain, index, visit, place, place < first) for place, domain, index, visit in rows]

    def served(self, domain: int) -> tuple[Numbers, Numbers]:
        """The samples of a domain that the stream serves, in the domain's order, all first visits first.

        Returns:
            (n,) their numbers in the domain, and (n,) how often each came before.
        """
        own = self.rows.domain == domain
        index, visit = self.rows.index[own], self.rows.visit[own]
        order = np.lexsort((index, visit))
        return index[order], visit[order]


def plan_of(
    stream: TargetStream, targets: Sequence[str], domains: Sequence[Domain], *, seed: int | None, batch_size: int
) -> StreamPlan:
    """The order of a stream.

    Args:
        stream: what it is like.
        targets: names of the targets that the data was asked for, which the stream visits.
        domains: the domains of the stream, with labels if it is correlated.
        seed: gives each visit to a domain a random order, together with the domain's name; ``None`` for the order that
            the domain has.
        batch_size: samples a batch, over all ranks.

    Raises:
        UserError: for a correlated stream of samples without one label each, for a mixed or correlated stream without
            a seed, or if the stream is shorter than a batch.
    """
    if seed is None and (stream.order == "mixed" or stream.correlated is not None):
        raise UserError("a mixed or correlated stream has a random order: leave out data.stream_order stored")
    numbers = {domain.name: number for number, domain in enumerate(domains)}
    served = dict.fromkeys(numbers, 0)
    parts: list[Rows] = []
    names: list[str] = []
    for each in range(stream.rounds):
        visited: list[Rows] = []
        for name, count in stream.visits(targets):
            domain = domains[numbers[name]]
            visited.append(_visit(domain, numbers[name], served[name], count, seed))
            served[name] += len(visited[-1].index)
            names.append(name)
        if stream.order == "mixed":
            names[len(names) - len(visited) :] = ["mixed"]
            visited = [_joined(visited)]
            visited = [one.at(_numbers(seed, "mixed", each).permutation(len(one.index))) for one in visited]
        parts += visited
    if stream.correlated is not None:
        labels = [_classes(domain) for domain in domains]
        parts = [_gathered(part, labels, stream.correlated, seed, number) for number, part in enumerate(parts)]
    lengths = np.asarray([len(part.index) for part in parts])
    starts = lengths.cumsum() - lengths
    if lengths.sum() < batch_size:
        raise UserError(
            f"the stream has {lengths.sum()} samples, fewer than a batch of {batch_size}: give a smaller "
            "data.target_batch_size"
        )
    batches = [np.arange(start, start + length, batch_size) for start, length in zip(starts, lengths, strict=True)]
    return StreamPlan(
        _joined(parts), tuple(names), starts, np.concatenate(batches), stream.window, not stream.reset_each_shift
    )


def _visit(domain: Domain, number: int, first: int, count: int | None, seed: int | None) -> Rows:
    """The next samples of a domain, of which ``first`` have come."""
    length = len(domain)
    positions = np.arange(first, first + (length if count is None else count))
    index, visit = positions % length, positions // length
    if seed is not None:
        orders = {int(each): permutation(seed, domain.name, int(each), length) for each in np.unique(visit)}
        index = np.concatenate([order[index[visit == each]] for each, order in orders.items()])
    return Rows(np.full(len(positions), number), index, visit)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _numbers(seed: int | None, what: str, number: int) -> np.random.Generator:
    assert seed is not None
    return np.random.default_rng([seed, crc32(f"stream/{what}".encode()), number])


def _classes(domain: Domain) -> Numbers:
    if domain.classes is None:
        lacks = "has no labels" if domain.labels is None else "has labels of many parts"
        raise UserError(
            f"a correlated stream is ordered by the classes of its samples, and {domain.name} {lacks}: give "
            "another data.stream"
        )
    return domain.classes


def _gathered(part: Rows, labels: Sequence[Numbers], delta: float, seed: int | None, number: int) -> Rows:
    """The samples of a segment, their classes gathered.

    There are as many slots as classes, at most :data:`MOST_SLOTS`. A Dirichlet distribution shares the samples of each
    class out over the slots. In a slot the classes come one after the other, in a random order (RoTTA's code).
    """
    random = _numbers(seed, "correlated", number)
    classes = np.empty(len(part.index), dtype=np.int64)
    for domain in np.unique(part.domain):
        own = part.domain == domain
        classes[own] = labels[domain][part.index[own]]
    present = np.unique(classes)
    slots: list[list[Numbers]] = [[] for _ in range(min(len(present), MOST_SLOTS))]
    for one in present:
        rows = np.flatnonzero(classes == one)
        ends = (random.dirichlet([delta] * len(slots)).cumsum()[:-1] * len(rows)).astype(np.int64)
        for slot, chosen in zip(slots, np.split(rows, ends), strict=True):
            slot.append(chosen)
    order = [slot[position] for slot in slots for position in random.permutation(len(slot))]
    return part.at(np.concatenate(order))


class StreamSampler(Sampler[list[Draw]]):
    """The batches of a stream, from the step reached on. Rank r of R takes every R-th sample of a batch from r on.

    Args:
        plan: the stream.
        steps_done: called at each ``iter``; the number of batches trained so far.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: if ``world_size`` does not divide the size of a batch.
    """

    def __init__(
        self, plan: StreamPlan, *, steps_done: Callable[[], int] = lambda: 0, rank: int = 0, world_size: int = 1
    ) -> None:
        for size, name in zip(plan.sizes().tolist(), plan.named_batches(), strict=True):
            if size % world_size:
                raise ValueError(f"{world_size} ranks cannot share {size} samples of {name} equally")
        self.plan, self.steps_done, self.rank, self.world_size = plan, steps_done, rank, world_size

    def batch(self, step: int) -> list[Draw]:
        """The part of batch ``step`` that this rank trains on."""
        return self.plan.draws(step)[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.steps_done(), len(self)):
            yield self.batch(step)

    def __len__(self) -> int:
        return len(self.plan.batches)
