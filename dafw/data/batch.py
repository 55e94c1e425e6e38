"""The joint batch: source rows first, target rows next, held-out rows last. Only source rows have labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dafw.data.domain import Domain
from dafw.data.fields import MASK, Fields, differ_in_length, have_same_names, pad_to_longest
from dafw.data.padding import IGNORE, Empty, pad_to_largest


class Sample(NamedTuple):
    """One sample as a dataset serves it.

    Attributes:
        x: the input; for an image a tensor (C, H, W), for a text a mapping of tensors (L,), or the text itself.
        y: the label; ``None`` where the domain has none. A class is a number, a mask a uint8 tensor (H, W), boxes a
            mapping with ``boxes`` (n, 4) and ``labels`` (n,).
        domain: position of its domain in the dataset.
        index: position in its domain.
        views: further augmentations of the input by name.
        maps: by the name of a view the affine map (2, 3) from pixels of ``x`` to pixels of the view.
        held_out: whether it belongs to the stream that the method holds out.
        place: its position in a stream of test samples; ``None`` elsewhere.
        again: whether it was served in an earlier batch, and comes again as a part of a window.
    """

    x: Any
    y: Any
    domain: int
    index: int  # type: ignore[assignment]
    views: dict[str, Any]
    maps: dict[str, Tensor]
    held_out: bool = False
    place: int | None = None
    again: bool = False


@dataclass
class Batch:
    """What a step receives.

    Args:
        x: inputs in the order source, target, held-out: (N, ...) in one tensor. Images of several sizes are padded with
            zeros. Samples of several parts, such as tokens and their mask, are :class:`~dafw.data.fields.Fields`, whose
            rows are sliced as those of a tensor. Parts that differ in length are padded with zeros to the longest of
            the batch if the samples have an ``attention_mask``. Other values, such as texts, are a list.
        y: labels of the first ``num_source`` inputs: (num_source, ...) in one tensor, or a list. Masks of several sizes
            are padded with :data:`~dafw.data.padding.IGNORE`.
        domain: (N,) int64, position of each row's domain in the datamodule's order (sources, then targets).
        index: (N,) int64, position of each row in its domain's split.
        num_source: number of rows that have a label; they come first.
        views: further augmentations of the same rows by name, each shaped like ``x``.
        num_held_out: number of target rows that come last, from a stream that shares no sample with the others; see
            ``Method.held_out``.
        sizes: (N, 2) int64, height and width of each image within its padding; ``None`` if no image is padded.
        maps: by the name of a view (N, 2, 3), the affine maps from pixels of ``x`` to pixels of the view.
        view_sizes: as ``sizes``, by the name of a view whose images are padded.
        origin: in an evaluation the domain that all rows come from, without its labels; ``None`` in training.
        place: (N,) int64, position of each row in a stream of test samples; ``None`` elsewhere.
        num_again: number of rows that were served in earlier batches, and come again as a part of a window. They come
            first.
    """

    x: Any
    y: Any
    domain: Tensor
    index: Tensor
    num_source: int
    views: dict[str, Any] = field(default_factory=dict)
    num_held_out: int = 0
    sizes: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    view_sizes: dict[str, Tensor] = field(default_factory=dict)
    origin: Domain | None = None
    place: Tensor | None = None
    num_again: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def unlabelled(self, origin: Domain | None = None) -> Self:
        """The batch without its labels.

        Args:
            origin: the domain that all rows come from; its labels are dropped too.
        """
        return replace(self, y=[], num_source=0, origin=None if origin is None else origin.unlabelled())

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
        return type(value)({key: _apply(item, function, kind) for key, item in value.items()})
    if isinstance(value, list | tuple):
        items = [_apply(item, function, kind) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def collate(samples: Sequence[Sample], empty: Empty = _new) -> Batch:
    """Samples, labelled ones first and held-out ones last, to a batch.

    Each sample is asked for once and stacked before the next one is made, while it is still in the processor's cache.

    Args:
        samples: what a dataset serves.
        empty: makes the tensors that others are stacked into.

    Raises:
        ValueError: if an unlabelled sample comes before a labelled one, or a held-out one before another.
    """
    x, y = _Rows(len(samples), empty), list[Any]()
    views: dict[str, _Rows] = {}
    maps: dict[str, list[Tensor]] = {}
    domain, index, places = [], [], list[int]()
    num_held_out = num_again = 0
    for position, sample in enumerate(samples):
        if sample.y is not None and len(y) < position:
            raise ValueError("labelled samples must come first in a batch")
        if num_held_out and not sample.held_out:
            raise ValueError("held-out samples must come last in a batch")
        x.add(sample.x)
        y += [] if sample.y is None else [sample.y]
        for name, view in sample.views.items():
            views.setdefault(name, _Rows(len(samples), empty)).add(view)
        for name, affine in sample.maps.items():
            maps.setdefault(name, []).append(affine)
        domain.append(sample.domain)
        index.append(sample.index)
        places += [] if sample.place is None else [sample.place]
        num_again += sample.again
        num_held_out += sample.held_out
    labels = _Rows(len(y), empty, labels=True)
    for label in y:
        labels.add(label)
    stacked = {name: rows.batch() for name, rows in views.items()}
    found, sizes = x.batch()
    return Batch(
        x=found,
        y=labels.batch()[0],
        domain=torch.tensor(domain, dtype=torch.int64),
        index=torch.tensor(index, dtype=torch.int64),
        num_source=len(y),
        views={name: view for name, (view, _) in stacked.items()},
        num_held_out=num_held_out,
        sizes=sizes,
        maps={name: torch.stack(found) for name, found in maps.items()},
        view_sizes={name: each for name, (_, each) in stacked.items() if each is not None},
        place=torch.tensor(places, dtype=torch.int64) if places else None,
        num_again=num_again,
    )


class _Rows:
    """Values one after the other. Tensors of one kind are stacked as they come.

    Args:
        count: number of the values.
        empty: makes the tensor that they are stacked into.
        labels: whether they are labels. Masks that differ in size are then padded with :data:`IGNORE`, and mappings of
            other values than tensors of one shape stay a list.
    """

    def __init__(self, count: int, empty: Empty, labels: bool = False) -> None:
        self.count, self.empty, self.labels = count, empty, labels
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

    def batch(self) -> tuple[Any, Tensor | None]:
        """The batch, and the sizes (N, 2) of its images if they are padded."""
        if self.stacked is not None:
            return self.stacked, None
        values = self.values
        if values and _are_planes(values):
            sizes = torch.tensor([value.shape[-2:] for value in values], dtype=torch.int64)
            return pad_to_largest(values, IGNORE if self.labels else 0, self.empty), sizes
        if have_same_names(values) and (parts := self._parts(values)) is not None:
            return parts, None
        numbers = all(isinstance(value, int | float | np.number) for value in values)
        return (torch.as_tensor(values) if values and numbers else values), None

    def _parts(self, values: list[Any]) -> Fields | None:
        """Mappings of the same names, part by part; ``None`` if a part has no one shape and no mask tells padding."""
        found = Fields()
        for name in values[0]:
            column = [value[name] for value in values]
            if differ_in_length(column) and MASK in values[0] and not self.labels:
                found[name] = pad_to_longest(column, self.empty)
                continue
            rows = _Rows(self.count, self.empty)
            for value in column:
                rows.add(value)
            if rows.stacked is None and (self.labels or any(isinstance(value, Tensor) for value in column)):
                return None
            found[name] = rows.batch()[0]
        return found


def _are_planes(values: list[Any]) -> bool:
    """Whether all values are images, or all masks, that differ in height and width alone."""
    if not all(isinstance(value, Tensor) and value.ndim in (2, 3) for value in values):
        return False
    return len({(value.shape[:-2], value.dtype) for value in values}) == 1
