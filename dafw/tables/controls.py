"""The control of a method: the same class with its adaptation weight at 0.

A method class declares it as a literal, ``control: ClassVar[dict[str, Any]] = {"weight": 0.0}``: the arguments that
turn the adaptation off. For the methods of this package it is read from the source, since importing them would
import torch.
"""

import ast
import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from dafw.errors import UserError, choose

METHODS = Path(__file__).resolve().parents[1] / "methods"
Index = tuple[tuple[Path, ast.ClassDef], ...]


def control_arguments(class_path: str, methods: Path = METHODS) -> dict[str, Any]:
    """The ``init_args`` overlay that makes the method its own control.

    Args:
        class_path: a method of this package, by name or in full, or a class of a package that can be imported.
        methods: the folder that holds this package's methods.

    Raises:
        UserError: if there is no such class, or it declares no control.
    """
    module, _, name = class_path.rpartition(".")
    if module and module.split(".")[0] != "dafw":
        control = _imported(module, name)
    else:
        index = _index(methods)
        path = methods.parent.parent.joinpath(*module.split(".")).with_suffix(".py")
        homes = [home for home in index if home[1].name == name]
        homes = [home for home in homes if home[0] == path] or homes
        if not homes:
            choose("method", name, [node.name for _, node in index])
        if len(homes) > 1:
            raise UserError(
                f'there are {len(homes)} classes called "{name}": give the full class path of the one you mean'
            )
        control = _declared(homes[0][1], index)
    if not isinstance(control, dict) or not control:
        raise UserError(
            f'{class_path} declares no control: leave out "control: true", or give the class a control attribute'
        )
    return dict(control)


def _imported(module: str, name: str) -> Any:
    try:
        return getattr(getattr(importlib.import_module(module), name), "control", None)
    except (ImportError, AttributeError) as error:
        raise UserError(f'cannot import "{module}.{name}", the class of a row with a control: {error}') from error


@lru_cache
def _index(methods: Path) -> Index:
    """Every top-level class under the folder, with its file."""
    return tuple(
        (path, node)
        for path in sorted(methods.rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body
        if isinstance(node, ast.ClassDef)
    )


def _declared(node: ast.ClassDef, index: Index) -> Any:
    """The value that the class body assigns to ``control``; without one, that of a base class in the index."""
    for statement in node.body:
        targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        if any(isinstance(target, ast.Name) and target.id == "control" for target in targets):
            value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            if value is not None:
                return _literal(node.name, value)
    for base in node.bases:
        parent = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        for _, candidate in index:
            if candidate.name == parent and candidate is not node:
                inherited = _declared(candidate, index)
                if inherited is not None:
                    return inherited
    return None


def _literal(name: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise UserError(f"{name}.control is not written out as a literal, so a table cannot read it") from error
