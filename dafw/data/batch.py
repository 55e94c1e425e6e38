"""The joint batch: source rows first, target rows after them, held-out rows last; labels for the source rows only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor


class Sample(NamedTuple):
    """One sample as a dataset serves it. ``y`` is ``None`` where the domain has no labels."""

    x: Any
    y: Any
    domain: int
    index: int  # type: ignore[assignment]
    views: dict[str, Any]
    held_out: bool = False


@dataclass
class Batch:
    """What a step receives.

    Args:
        x: inputs, source, target, held-out: (N, ...) stacked if their shapes and dtypes agree, a list otherwise.
        y: labels of the first ``num_source`` inputs; (num_source, ...) stacked, or a list.
        domain: (N,) int64, position of each row's domain in the datamodule's order (sources, then targets).
        index: (N,) int64, position of each row in its domain's split.
        num_source: rows that carry a label, which come first.
        views: further augmentations of the same rows by name, each shaped like ``x``.
        num_held_out: target rows that come last, of a stream that shares no sample with the others; see
            ``Method.held_out``.
    """

    x: Any
    y: Any
    domain: Tensor
    index: Tensor
    num_source: int
    views: dict[str, Any] = field(default_factory=dict)
    num_held_out: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[Any], Any], kind: type = Tensor) -> Self:
        """The batch with ``function`` of everything in it that is a ``kind``."""
        return type(self)(**{f.name: _apply(getattr(self, f.name), function, kind) for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False, **_: Any) -> Self:
        """The batch with every tensor on ``device``."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: Any = None) -> Self:
        """The batch with every tensor in pinned memory (called by the data loader)."""
        return self.map(lambda tensor: tensor.pin_memory())


def _apply(value: Any, function: Callable[[Any], Any], kind: type) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _apply(item, function, kind) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_apply(item, function, kind) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


Empty = Callable[[Sequence[int], torch.dtype], Tensor]


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def collate(samples: Sequence[Sample], empty: Empty = _new) -> Batch:
    """Samples, labelled ones first and held-out ones last, to a batch.

    Each sample is asked for once, and stacked before the next: one that is made then is still in the processor's cache.

    Args:
        samples: what a dataset serves.
        empty: makes the tensors that others are stacked into.

    Raises:
        ValueError: if an unlabelled sample comes before a labelled one, or a held-out one before another.
    """
    x, y = _Rows(len(samples), empty), list[Any]()
    views: dict[str, _Rows] = {}
    domain, index, num_held_out = [], [], 0
    for position, sample in enumerate(samples):
        if sample.y is not None and len(y) < position:
            raise ValueError("labelled samples must come first in a batch")
        if num_held_out and not sample.held_out:
            raise ValueError("held-out samples must come last in a batch")
        x.add(sample.x)
        y += [] if sample.y is None else [sample.y]
        for name, view in sample.views.items():
            views.setdefault(name, _Rows(len(samples), empty)).add(view)
        domain.append(sample.domain)
        index.append(sample.index)
        num_held_out += sample.held_out
    labels = _Rows(len(y), empty)
    for label in y:
        labels.add(label)
    return Batch(
        x=x.batch(),
        y=labels.batch(),
        domain=torch.tensor(domain, dtype=torch.int64),
        index=torch.tensor(index, dtype=torch.int64),
        num_source=len(y),
        views={name: rows.batch() for name, rows in views.items()},
        num_held_out=num_held_out,
    )


class _Rows:
    """Values one after the other, stacked as they come as long as they are tensors of one kind."""

    def __init__(self, count: int, empty: Empty) -> None:
        self.count, self.empty = count, empty
        self.values: list[Any] = []
        self.stacked: Tensor | None = None

    def add(self, value: Any) -> None:
        if not self.values and isinstance(value, Tensor):
            self.stacked = self._stack_for(value)
        if self.stacked is not None:
            row = self.stacked[len(self.values)]
            if isinstance(value, Tensor) and (value.shape, value.dtype) == (row.shape, row.dtype):
                value = row.copy_(value)
            else:
                self.stacked = None
        self.values.append(value)

    def _stack_for(self, value: Tensor) -> Tensor:
        if value.ndim == 3 and value.stride(0) == 1:  # an image whose pixels have their channels side by side
            height, width = value.shape[1:]
            return self.empty((self.count, height, width, len(value)), value.dtype).permute(0, 3, 1, 2)
        return self.empty((self.count, *value.shape), value.dtype)

    def batch(self) -> Any:
        if self.stacked is not None:
            return self.stacked
        numbers = all(isinstance(v, int | float | np.number) for v in self.values)
        return torch.as_tensor(self.values) if self.values and numbers else self.values
