"""Stateless sampling: which samples make batch t, as a pure function of (seed, t, rank)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One sample to load.

    Attributes:
        domain: which domain.
        index: which of its samples.
        cycle: how often the domain was passed before.
        place: its position in a stream of test samples; ``None`` elsewhere.
        again: whether it was served in an earlier batch, and comes again as a part of a window.
    """

    domain: int
    index: int  # type: ignore[assignment]
    cycle: int
    place: int | None = None
    again: bool = False


@lru_cache(maxsize=64)
def permutation(seed: int, domain: str, cycle: int, length: int) -> NDArray[np.int64]:
    """The order (length,) of a domain's samples in one pass; do not write to it."""
    order = np.random.default_rng([seed, crc32(domain.encode()), cycle]).permutation(length)
    return order.astype(np.int64)


def draw(seed: int, domain: str, position: int, length: int) -> tuple[int, int]:
    """Element ``position`` of a domain's endless stream: (sample, pass). Every pass is a new permutation.

    >>> sorted(draw(0, "mnist", j, 4)[0] for j in range(4, 8))
    [0, 1, 2, 3]
    """
    cycle, offset = divmod(position, length)
    return int(permutation(seed, domain, cycle, length)[offset]), cycle


def draw_by_class(seed: int, domain: str, position: int, rows: Sequence[NDArray[np.int64]]) -> tuple[int, int]:
    """Element ``position`` of a domain's endless stream that is balanced over classes: (sample, pass of its class).

    The classes come in turns. Each turn has every class once and is a new permutation of them. The samples of a class
    come as :func:`draw` gives them, so that none comes twice before all of its class came.

    Args:
        seed: of the order.
        domain: the domain's name.
        position: in the stream.
        rows: for each class that occurs, the numbers of its samples.
    """
    which, turn = draw(seed, f"{domain}/classes", position, len(rows))
    place, cycle = draw(seed, f"{domain}/class {which}", turn, len(rows[which]))
    return int(rows[which][place]), cycle


def draw_by_share(
    seed: int, domain: str, position: int, rows: Sequence[NDArray[np.int64]], shares: NDArray[np.float64]
) -> tuple[int, int]:
    """Element ``position`` of a domain's endless stream whose classes come at random: (sample, pass).

    Every element is drawn on its own, so a sample may come twice in a row. The pass is the position: each time that a
    sample comes, it is augmented anew.

    Args:
        seed: of the order.
        domain: the domain's name.
        position: in the stream.
        rows: for each class, the numbers of the samples that are drawn for it; a sample may be of several classes.
        shares: for each class, its probability.
    """
    numbers = np.random.default_rng([seed, crc32(f"{domain}/shares".encode()), position])
    own = rows[int(numbers.choice(len(rows), p=shares))]
    return int(own[numbers.integers(len(own))]), position


#: From a batch's number to its extra draws, those of labelled and those of unlabelled domains.
ExtraDraws = Callable[[int], tuple[Sequence[Draw], Sequence[Draw]]]


@dataclass(frozen=True)
class Stream:
    """One domain's part of every batch.

    Args:
        name: the domain's name, which enters the order of its samples.
        length: its number of samples.
        count: how many of them a global batch (all ranks together) holds.
        rows: for each class that occurs, the numbers of its samples; then the stream has as many samples of each class.
        shares: for each of these classes, the probability with which it is drawn instead.
    """

    name: str
    length: int
    count: int
    rows: Sequence[NDArray[np.int64]] | None = None
    shares: NDArray[np.float64] | None = None

    def draw(self, seed: int, position: int) -> tuple[int, int]:
        """Element ``position`` of the stream: (sample, pass)."""
        if self.rows is None:
            return draw(seed, self.name, position, self.length)
        if self.shares is not None:
            return draw_by_share(seed, self.name, position, self.rows, self.shares)
        return draw_by_class(seed, self.name, position, self.rows)


class JointBatchSampler(Sampler[list[Draw]]):
    """Batches of fixed composition: ``count`` samples of each stream, in the streams' order.

    The global batch ``t`` holds positions ``[t * count, (t + 1) * count)`` of each stream; rank r of R takes
    every R-th of them from r on. So the ranks' batches together are the batch of one process, and a run
    resumed at step t needs nothing but t.

    Args:
        streams: source domains, then target domains.
        seed: seed of the order.
        steps_per_epoch: batches between two calls of ``iter``; an epoch is a number of steps.
        steps_done: called at each ``iter``; the number of batches trained so far.
        rank: this process.
        world_size: number of processes; divides every stream's count.
        extra_draws: called at each ``iter``; what draws extra rows of a global batch, which the ranks share likewise.
        places: numbers of streams after which the further labelled and the further unlabelled draws come.

    Raises:
        ValueError: if ``world_size`` does not divide a stream's count.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        seed: int,
        steps_per_epoch: int,
        steps_done: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        extra_draws: Callable[[], ExtraDraws] | None = None,
        places: tuple[int, int] = (0, 0),
    ) -> None:
        for stream in streams:
            if stream.count % world_size:
                raise ValueError(f"{world_size} ranks cannot share {stream.count} samples of {stream.name} equally")
        self.streams = list(streams)
        self.seed, self.steps_per_epoch, self.steps_done = seed, steps_per_epoch, steps_done
        self.rank, self.world_size = rank, world_size
        self.extra_draws, self.places = extra_draws, places

    def batch(self, step: int, extra_draws: ExtraDraws | None = None) -> list[Draw]:
        """The part of global batch ``step`` that this rank trains on."""
        draws: list[Draw] = []
        rows = dict(zip(self.places, extra_draws(step), strict=True)) if extra_draws else {}
        for domain, stream in enumerate(self.streams):
            first = step * stream.count + self.rank
            for position in range(first, (step + 1) * stream.count, self.world_size):
                draws.append(Draw(domain, *stream.draw(self.seed, position)))
            draws += rows.get(domain + 1, ())[self.rank :: self.world_size]
        return draws

    def __iter__(self) -> Iterator[list[Draw]]:
        start = self.steps_done()
        extra_draws = self.extra_draws() if self.extra_draws else None
        end = (start // self.steps_per_epoch + 1) * self.steps_per_epoch
        for step in range(start, end):
            yield self.batch(step, extra_draws)

    def __len__(self) -> int:
        return self.steps_per_epoch


class ShardSampler(Sampler[list[Draw]]):
    """Every sample of one domain once, spread over the ranks without padding.

    Args:
        length: samples of the domain.
        batch_size: samples a batch.
        domain: the domain's position in the dataset.
        mixed: a seed and the domain's name, which give the samples a random order; ``None`` for the domain's own order,
            which may be by class.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        domain: int = 0,
        mixed: tuple[int, str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        order: Sequence[int] = range(length) if mixed is None else permutation(*mixed, 0, length).tolist()
        self.indices = order[rank::world_size]
        self.batch_size, self.domain = batch_size, domain

    def __iter__(self) -> Iterator[list[Draw]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [Draw(self.domain, index, 0) for index in self.indices[start : start + self.batch_size]]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)
