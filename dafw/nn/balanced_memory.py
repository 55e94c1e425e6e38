"""A memory of images in which no predicted class crowds out the others, and old or unsure ones leave first."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dafw.nn.buffers import VariableLengthBuffers


class Lesson(NamedTuple):
    """What the memory holds when it is time to learn.

    Attributes:
        images: (m, ...), class by class, each class in the order of arrival.
        ages: (m,), as shares of the capacity.
        row: number of the row after whose arrival this is.
    """

    images: Tensor
    ages: Tensor
    row: int


@dataclass
class Slots:
    """What is known of the stored rows of a :class:`BalancedMemory`, on the host.

    Args:
        capacity: N.
        classes: K.
        time_weight: weight of the age in a row's score.
        entropy_weight: weight of the entropy in a row's score.
        labels: the class of each slot's row.
        entropies: its entropy in nats.
        arrivals: when it arrived, as the number of rows before it; -1 for an empty slot.
        arrived: rows that have arrived so far, the ones that were not stored included.
    """

    capacity: int
    classes: int
    time_weight: float = 1.0
    entropy_weight: float = 1.0
    labels: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)
    arrived: int = 0

    def __post_init__(self) -> None:
        if not self.arrivals:
            self.labels, self.arrivals = [0] * self.capacity, [-1] * self.capacity
            self.entropies = [0.0] * self.capacity

    def add(self, label: int, entropy: float) -> tuple[int | None, int]:
        """A row arrives.

        A class may hold up to ceil(N / K) rows. The class of the new row has room, and the memory too: it is stored.
        Its class is full: that class's row of the highest score may leave. The memory is full: it is that of all the
        largest classes. The row leaves if its score exceeds the new one's, else the new one is not stored. Of equal
        scores the later one leaves, classes in their order.

        Args:
            label: its predicted class.
            entropy: of its prediction, in nats.

        Returns:
            The slot that it is stored in, ``None`` if it is not; and the arrival number of the row that left, -1.
        """
        filled = self.in_order()
        counts = [0] * self.classes
        for one in filled:
            counts[self.labels[one]] += 1
        slot, left = self._empty_slot(), -1
        if counts[label] >= self.capacity / self.classes or slot is None:
            full = [label] if counts[label] >= self.capacity / self.classes else _largest(counts)
            rivals = [one for one in filled if self.labels[one] in full]
            worst = max(reversed(rivals), key=self.score)
            slot = worst if self.score(worst) > self._score(0, entropy) else None
            left = self.arrivals[worst] if slot is not None else -1
        if slot is not None:
            self.labels[slot], self.entropies[slot], self.arrivals[slot] = label, entropy, self.arrived
        self.arrived += 1
        return slot, left

    def in_order(self) -> list[int]:
        """The slots that hold a row, class by class, each class in the order of arrival."""
        filled = (slot for slot, arrival in enumerate(self.arrivals) if arrival >= 0)
        return sorted(filled, key=lambda slot: (self.labels[slot], self.arrivals[slot]))

    def age(self, slot: int) -> int:
        """How many rows have arrived since that of a slot, itself included."""
        return self.arrived - self.arrivals[slot]

    def score(self, slot: int) -> float:
        """How much the row of a slot should leave."""
        return self._score(self.age(slot), self.entropies[slot])

    def _score(self, age: int, entropy: float) -> float:
        time = 1 / (1 + math.exp(-age / self.capacity))
        return self.time_weight * time + self.entropy_weight * entropy / math.log(self.classes)

    def _empty_slot(self) -> int | None:
        return next((slot for slot, arrival in enumerate(self.arrivals) if arrival < 0), None)


class BalancedMemory(VariableLengthBuffers):
    """Stored images with what :class:`Slots` knows of them. Every rank must be given the rows of all ranks.

    Yuan et al., Robust Test-Time Adaptation in Dynamic Scenarios (RoTTA), CVPR 2023, https://arxiv.org/abs/2303.13899:
    category-balanced sampling with timeliness and uncertainty.

    Args:
        capacity: N.
        classes: K, at least 2.
        time_weight: see :class:`Slots` (paper: 1).
        entropy_weight: see :class:`Slots` (paper: 1).

    Attributes:
        images: (N, ...), zeros in an empty slot; (0,) before the first image.
        labels: (N,) int64.
        entropies: (N,).
        arrivals: (N,) int64, -1 for an empty slot.
        arrived: number of rows that have arrived.
    """

    variable_buffers = ("images",)
    images: Tensor
    labels: Tensor
    entropies: Tensor
    arrivals: Tensor
    arrived: Tensor

    def __init__(self, capacity: int, classes: int, *, time_weight: float = 1.0, entropy_weight: float = 1.0) -> None:
        super().__init__()
        self.capacity, self.classes = capacity, classes
        self.time_weight, self.entropy_weight = time_weight, entropy_weight
        self.register_buffer("images", torch.empty(0))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("entropies", torch.zeros(capacity))
        self.register_buffer("arrivals", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("arrived", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor, entropies: Tensor, every: int) -> tuple[list[Lesson], Tensor]:
        """Rows arrive one by one. The host reads once what the device knows of them and of the stored ones.

        Args:
            images: (n, ...).
            labels: (n,) int64, their predicted classes.
            entropies: (n,), of their predictions in nats.
            every: after each such number of arrivals, what is stored is a lesson.

        Returns:
            The lessons, none without a row; and (n,) bool, which of the rows were stored when they arrived.
        """
        count, capacity = len(images), self.capacity
        if not len(self.images):
            self.images = images.new_zeros(capacity, *images.shape[1:])
        known = [self.labels, self.arrivals, self.arrived[None], self.entropies, labels, entropies]
        numbers: list[float] = torch.cat([one.to(entropies) for one in known]).tolist()
        slots = Slots(capacity, self.classes, self.time_weight, self.entropy_weight)
        slots.labels, slots.arrivals = ([int(one) for one in numbers[i * capacity :][:capacity]] for i in (0, 1))
        slots.arrived, rest = int(numbers[2 * capacity]), numbers[2 * capacity + 1 :]
        slots.entropies, rows = rest[:capacity], zip(rest[capacity:][:count], rest[-count:], strict=True)
        pool, source = torch.cat([self.images, images]), list(range(capacity))
        lessons, stored = [], [False] * count
        for row, (label, entropy) in enumerate(rows):
            slot, _ = slots.add(int(label), entropy)
            if slot is not None:
                source[slot], stored[row] = capacity + row, True
            filled = slots.in_order()
            if slots.arrived % every == 0 and filled:
                ages = [slots.age(one) / capacity for one in filled]
                chosen = pool[self._on_device([source[one] for one in filled], labels)]
                lessons.append(Lesson(chosen, self._on_device(ages, entropies), row))
        self.images = pool[self._on_device(source, labels)]
        self.labels, self.arrivals = (self._on_device(one, labels) for one in (slots.labels, slots.arrivals))
        self.entropies = self._on_device(slots.entropies, self.entropies)
        self.arrived = self.arrived + count
        return lessons, self._on_device(stored, labels).bool()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        held = state_dict.get(f"{prefix}images")
        if held is not None:  # uint8 or floating point, as the batches are
            self.images = self.images.to(held.dtype)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @staticmethod
    def _on_device(values: list[Any], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def _largest(counts: list[int]) -> list[int]:
    return [label for label, count in enumerate(counts) if count == max(counts)]
