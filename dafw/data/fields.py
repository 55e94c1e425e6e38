"""Inputs of several parts with the same rows, such as the tokens of texts and their mask."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from dafw.data.padding import Empty

MASK = "attention_mask"
"""The part that is 1 where a sample has a value, and 0 in its padding."""


class Fields(dict[str, Any]):
    """By name the parts of N inputs: tensors (N, ...), or lists of N values.

    A name gives a part. A slice or a tensor of positions gives these rows of every part, as it does of a tensor.
    ``len`` is the number of parts.
    """

    def __getitem__(self, key: Any) -> Any:
        """A part by its name, or some rows of all parts."""
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.rows(key)

    def rows(self, rows: Any) -> Self:
        """Some rows of all parts."""
        return type(self)({name: _rows(part, rows) for name, part in self.items()})


def _rows(part: Any, rows: Any) -> Any:
    if isinstance(part, list) and isinstance(rows, Tensor):
        chosen = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return [part[position] for position in chosen.tolist()]
    return part.rows(rows) if isinstance(part, Fields) else part[rows]


def join_rows(parts: Sequence[Any]) -> Any:
    """The rows of several parts of one batch, one part after the other: tensors, :class:`Fields` or lists."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Fields):
        return type(first)({name: join_rows([part[name] for part in parts]) for name in first})
    return [value for part in parts for value in part]


def have_same_names(values: Sequence[Any]) -> bool:
    """Whether all values are mappings with the same names, and none is the boxes of an image."""
    if not values or not all(isinstance(value, Mapping) and "boxes" not in value for value in values):
        return False
    return len({tuple(value) for value in values}) == 1


def differ_in_length(values: Sequence[Any]) -> bool:
    """Whether all values are tensors of one kind whose first dimensions alone differ."""
    if not all(isinstance(value, Tensor) and value.ndim for value in values):
        return False
    alike = len({(value.shape[1:], value.dtype) for value in values}) == 1
    return alike and len({len(value) for value in values}) > 1


def pad_to_longest(values: Sequence[Tensor], empty: Empty) -> Tensor:
    """Tensors (L_i, ...) to one (N, L, ...), with zeros behind the shorter ones.

    Args:
        values: tensors that differ in their first dimension alone.
        empty: makes the result.
    """
    longest = max(map(len, values))
    padded = empty((len(values), longest, *values[0].shape[1:]), values[0].dtype).zero_()
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded
