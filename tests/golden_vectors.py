"""Reference vectors: arrays computed by running other implementations, and which tests read them."""

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The test in progress that may not read vectors, since ``make golden`` would leave it out; empty if there is none.
unmarked = ""


def golden(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of one file, for instance ``dann/schedules.npz``.

    Args:
        path: relative to the folder in the environment variable ``DAFW_GOLDEN``, or to ``tests/golden``. Other files
            of the same form may take the place of ours, so nothing in a test may depend on particular numbers.

    Raises:
        AssertionError: if the test that reads it has no mark ``golden``.
    """
    assert not unmarked, f"{unmarked} reads {path} in a way that is not found: mark it @pytest.mark.golden"
    folder = Path(os.environ.get("DAFW_GOLDEN") or Path(__file__).parent / "golden")
    with np.load(folder / path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def readers(source: str) -> set[str]:
    """Names of the functions of a test file that read vectors: themselves, or by its helpers, fixtures or constants."""
    found = {"golden"}
    uses: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            uses[node.name] = _names_used(node)
        elif isinstance(node, ast.ClassDef):
            uses[node.name] = _names(node, ast.Load)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            uses |= dict.fromkeys(_names(node, ast.Store), _names(node, ast.Load))
    while more := {name for name, used in uses.items() if used & found and name not in found}:
        found |= more
    return found - {"golden"}


def _names_used(function: ast.FunctionDef) -> set[str]:
    """Names from outside a function: those that it loads and never sets, and the fixtures that are its arguments."""
    arguments = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    used = _names(function, ast.Load) - _names(function, ast.Store) - arguments
    decorators = " ".join(map(ast.unparse, function.decorator_list))
    takes_fixtures = function.name.startswith("test") or "fixture" in decorators
    return used | arguments if takes_fixtures else used


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, context)}
