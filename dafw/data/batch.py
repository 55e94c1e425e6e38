"""The joint batch: source rows first, target rows after them, held-out rows last; labels for the source rows only."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

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
        x: inputs, source, target, held-out: (N, ...) stacked if their shapes agree, a list otherwise.
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

    def _map(self, function: Any) -> Self:
        return type(self)(**{f.name: _apply(getattr(self, f.name), function) for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False, **_: Any) -> Self:
        """The batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: Any = None) -> Self:
        """The batch with every tensor in pinned memory (called by the data loader)."""
        return self._map(lambda tensor: tensor.pin_memory())


def _apply(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _apply(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_apply(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples, labelled ones first and held-out ones last, to a batch.

    Raises:
        ValueError: if an unlabelled sample comes before a labelled one, or a held-out one before another.
    """
    num_source = sum(sample.y is not None for sample in samples)
    if any(sample.y is None for sample in samples[:num_source]):
        raise ValueError("labelled samples must come first in a batch")
    num_held_out = sum(sample.held_out for sample in samples)
    if any(sample.held_out for sample in samples[: len(samples) - num_held_out]):
        raise ValueError("held-out samples must come last in a batch")
    names = samples[0].views.keys() if samples else ()
    return Batch(
        x=_stack([sample.x for sample in samples]),
        y=_stack([sample.y for sample in samples[:num_source]]),
        domain=torch.tensor([sample.domain for sample in samples], dtype=torch.int64),
        index=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        num_source=num_source,
        views={name: _stack([sample.views[name] for sample in samples]) for name in names},
        num_held_out=num_held_out,
    )


def _stack(values: list[Any]) -> Any:
    if values and all(isinstance(value, Tensor) for value in values):
        return torch.stack(values) if len({value.shape for value in values}) == 1 else values
    if values and all(isinstance(value, int | float) or hasattr(value, "__index__") for value in values):
        return torch.as_tensor(values)
    return values
