"""Dataclasses of tensors that all have the same rows: length, slices, concatenation, and torch's view of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor

Layout = Literal["tensors", "list", "shared"]
#: Metadata of a dataclass field that holds a list with one entry for each row.
ROW_LIST = {"layout": "list"}
#: Metadata of a dataclass field that belongs to all rows together: a slice keeps it whole.
SHARED = {"layout": "shared"}


def _register(cls: type[Any]) -> None:
    """Tells torch which tensors are inside. A torch without the registry cannot export outputs, and does all else."""
    try:
        from torch.utils._pytree import GetAttrKey, register_pytree_node
    except ImportError:
        return

    def present(outputs: Any) -> list[str]:
        return [one.name for one in fields(outputs) if getattr(outputs, one.name) is not None]

    def flatten(outputs: Any) -> tuple[list[Any], list[str]]:
        names = present(outputs)
        return [getattr(outputs, name) for name in names], names

    def flatten_with_keys(outputs: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
        names = present(outputs)
        return [(GetAttrKey(name), getattr(outputs, name)) for name in names], names

    def unflatten(values: Any, names: list[str]) -> Any:
        absent = {one.name: None for one in fields(cls)}
        return cls(**(absent | dict(zip(names, values, strict=True))))

    register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


@dataclass(frozen=True)
class TensorRows:
    """Base of dataclasses that hold tensors of the same N rows. It gives them a length, slices and concatenation.

    A field is a tensor with N leading rows, a list, tuple or mapping of such fields (the levels of a feature pyramid),
    or ``None``. ``field(metadata=ROW_LIST)`` and ``field(metadata=SHARED)`` declare the other two.

    Each subclass is a pytree of torch: ``torch.export``, ``torch.func`` and ``torch.compile`` look inside it.
    """

    def __init_subclass__(cls) -> None:
        """Registers the class with torch."""
        super().__init_subclass__()
        _register(cls)

    def __len__(self) -> int:
        for one in fields(self):
            value = getattr(self, one.name)
            found = len(value) if _layout(one) == "list" and value is not None else None
            if _layout(one) == "tensors":
                found = _length(value)
            if found is not None:
                return found
        raise TypeError(f"{type(self).__name__} holds no rows")

    def __getitem__(self, rows: slice) -> Self:
        """The given rows as views of these tensors: nothing is copied."""
        return type(self)(**{one.name: _slice(getattr(self, one.name), rows, _layout(one)) for one in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """The same rows on another device."""
        return type(self)(**{one.name: _move(getattr(self, one.name), device) for one in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one part after the other.

        Args:
            parts: at least one; all have the same fields, and their tensors differ in the first dimension alone.

        Raises:
            ValueError: if the parts do not fit together; it names the field.
        """
        if not parts:
            raise ValueError(f"no part of {cls.__name__} was given to concatenate")
        joined = {}
        for one in fields(cls):
            try:
                joined[one.name] = _join([getattr(part, one.name) for part in parts], _layout(one))
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"the parts of {cls.__name__} differ in {one.name}: {error}") from error
        return cls(**joined)


def _layout(one: Field[Any]) -> Layout:
    layout: Layout = one.metadata.get("layout", "tensors")
    return layout


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _move(member, device) for name, member in value.items()}
    return type(value)(_move(member, device) for member in value) if isinstance(value, list | tuple) else value


def _length(value: Any) -> int | None:
    """Rows of the first tensor inside."""
    if isinstance(value, Tensor):
        return value.shape[0]
    members = value.values() if isinstance(value, Mapping) else value or ()
    return next((found for member in members if (found := _length(member)) is not None), None)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with other tensors."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _map(member, change) for name, member in value.items()}
    return type(value)(_map(member, change) for member in value)


def _slice(value: Any, rows: slice, layout: Layout) -> Any:
    if layout == "shared":
        return value
    if layout == "list":
        return None if value is None else value[rows]
    return _map(value, lambda tensor: tensor[rows])


def _join(values: list[Any], layout: Layout) -> Any:
    first = values[0]
    if layout == "shared":
        if any(_shape(value) != _shape(first) for value in values):
            raise ValueError("all rows must share it")
        return first
    if first is None or any(value is None for value in values):
        if any(value is not None for value in values):
            raise ValueError("some parts have it and some do not")
        return None
    if layout == "list":
        return [entry for value in values for entry in value]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if any(len(value) != len(first) for value in values):
        raise ValueError("their numbers of levels differ")
    if isinstance(first, Mapping):
        return {name: _join([value[name] for value in values], layout) for name in first}
    return type(first)(_join(list(members), layout) for members in zip(*values, strict=True))


def _shape(value: Any) -> Any:
    """A value with the shapes of its tensors in their place: comparing contents would make the host wait."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape))
    if isinstance(value, Mapping):
        return {name: _shape(member) for name, member in value.items()}
    return [_shape(member) for member in value] if isinstance(value, list | tuple) else value
