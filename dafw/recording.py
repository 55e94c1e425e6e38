"""Objects that remember how they were made, so that a checkpoint can make them again."""

import dataclasses
import importlib
import inspect
import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Self

from dafw.errors import UserError
from dafw.ranges import Checked


class Recorded(Checked):
    """Remembers the arguments of its constructor, which are checked. List it first among the bases."""

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Checks the arguments, and notes them."""
        self = super().__new__(cls, *args, **kwargs)
        object.__setattr__(self, "_given", (args, kwargs))
        return self


def describe(obj: Recorded) -> dict[str, Any]:
    """``{"class_path": ..., "init_args": ...}`` of plain values (numbers, strings, lists, dicts) only.

    Raises:
        TypeError: if an argument is neither plain, nor :class:`Recorded`, nor a dataclass; naming it.
    """
    owner = type(obj)
    return {
        "class_path": f"{owner.__module__}.{owner.__qualname__}",
        "init_args": {name: _plain(f"{owner.__name__}.{name}", value) for name, value in _given(obj).items()},
    }


def describable(obj: Recorded) -> dict[str, Any]:
    """The arguments that :func:`describe` can hold, as plain values; others are left out."""
    found = {}
    for name, value in _given(obj).items():
        with suppress(TypeError):
            found[name] = _plain(name, value)
    return found


def _given(obj: Recorded) -> dict[str, Any]:
    """The arguments of the constructor's call by name."""
    args, kwargs = obj._given
    signature = inspect.signature(type(obj).__init__)
    values: dict[str, Any] = {}
    for name, value in list(signature.bind(obj, *args, **kwargs).arguments.items())[1:]:
        kind = signature.parameters[name].kind
        values.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return values


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, Recorded):
        return describe(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        arguments = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {
            "class_path": f"{type(value).__module__}.{type(value).__qualname__}",
            "init_args": {key: _plain(f"{name}.{key}", item) for key, item in arguments.items()},
        }
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold: give it as a class path")


def may_name(module: str) -> bool:
    """Whether a file that came from elsewhere may name a class of this module.

    The module is of this project, or the program has imported it already: a file must not choose what code is loaded.
    """
    return module in sys.modules or module.split(".")[0] in ("dafw", "datamodules")


def build(description: Any) -> Any:
    """Makes again what :func:`describe` described. It imports no module that a file may not name.

    Raises:
        UserError: if a class lies in a module that was not imported, is neither :class:`Recorded` nor a dataclass, or
            does not take the arguments.
    """
    if isinstance(description, list):
        return [build(item) for item in description]
    if not isinstance(description, dict):
        return description
    if set(description) != {"class_path", "init_args"}:
        return {key: build(value) for key, value in description.items()}
    path, given = str(description["class_path"]), description["init_args"]
    module_name, _, name = path.rpartition(".")
    if not may_name(module_name):
        raise UserError(f"the checkpoint holds a {path}: import {module_name} first, if you trust it")
    try:
        owner = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        owner = None
    if not (isinstance(owner, type) and (issubclass(owner, Recorded) or dataclasses.is_dataclass(owner))):
        raise UserError(f"the checkpoint names {path}, which is not a part dafw can build")
    arguments = {str(key): build(value) for key, value in given.items()} if isinstance(given, dict) else {}
    try:
        return owner(**arguments)
    except TypeError as error:
        raise UserError(f"the checkpoint gives {path} arguments that it does not take: {error}") from error
