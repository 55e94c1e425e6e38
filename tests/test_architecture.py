"""The folders' order: imports run downwards, modules form no circle, and no file is longer than can be read at once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 400
"""Lines of the longest file."""

#: From above to below. A folder or file imports what is below it, and what is in its own folder.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("dafw.__main__",),
    ("dafw.cli",),
    ("dafw.tables", "dafw.tuning", "dafw.commands"),
    ("dafw.api",),
    ("dafw.export",),
    ("dafw.testing",),
    ("dafw.run",),
    ("dafw.methods",),
    ("dafw.evaluation", "dafw.callbacks"),
    ("dafw.selection", "dafw.optim"),
    ("dafw.losses", "dafw.estimation"),
    ("dafw.nn",),
    ("dafw.problems",),
    ("dafw.metrics",),
    ("datamodules",),
    ("dafw.data",),
    ("dafw.plots", "dafw.checkpoints", "dafw.recording", "dafw.lightning_adapter"),
    ("dafw.files", "dafw.ranges", "dafw.samples"),
    ("dafw.errors",),
    ("dafw.escape", "dafw.names"),
    ("dafw.plain_yaml",),
)
#: What may import the datamodules. Methods and all that is below them know only the batches that datamodules serve.
USE_DATAMODULES = (
    *("dafw.__main__", "dafw.cli", "dafw.tables", "dafw.tuning", "dafw.commands", "dafw.testing", "dafw.run"),
    "dafw.api",
    "datamodules",
)
#: What the datamodules may import of dafw.
OF_DATAMODULES = ("dafw.data", "dafw.files", "dafw.names", "dafw.errors", "dafw.escape")


class Import(NamedTuple):
    """One import of a module of this project by another one."""

    importer: str
    imported: str
    line: int
    lazy: bool
    """Whether it is in a function, and so happens when that is called."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """The project's modules by name."""
    found = {}
    for package in ("dafw", "datamodules"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """All imports between the project's modules, without those that only a type checker sees."""
    return tuple(
        Import(name, target, line, lazy)
        for name, path in modules().items()
        for target, line, lazy in walk(name, path, ast.parse(path.read_text(encoding="utf-8")), False)
    )


def walk(name: str, path: Path, node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from walk(name, path, ast.Module([other], []), lazy)
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, lazy) for alias in child.names if alias.name in modules())
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                package = package[: len(package) - child.level + 1]
                base = ".".join([*package, *filter(None, [child.module])])
            for target in targets(base, [alias.name for alias in child.names]):
                yield target, child.lineno, lazy
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(name, path, child, lazy or inside)


def targets(base: str, names: list[str]) -> Iterator[str]:
    """The modules that ``from base import names`` reads; a submodule is meant only if the package has no such name."""
    if base not in modules():
        return
    own = defined(base)
    submodules = [f"{base}.{name}" for name in names if name not in own and f"{base}.{name}" in modules()]
    yield from submodules
    if len(submodules) < len(names) and base != "dafw":  # of "dafw" that is its version
        yield base


@cache
def defined(module: str) -> frozenset[str]:
    """The names that a module's own statements give it."""
    found: set[str] = set()
    for node in ast.parse(modules()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return frozenset(found)


def home(module: str) -> str:
    """The folder or file of :data:`LAYERS` that a module is in; empty for ``dafw`` itself."""
    return next((one for layer in LAYERS for one in layer if module == one or module.startswith(f"{one}.")), "")


def depth(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if home(module) in layer)


def test_every_module_has_a_place_in_the_order() -> None:
    assert [name for name in modules() if not home(name) and name != "dafw"] == []
    here = {one for layer in LAYERS for one in layer if one not in modules()}
    assert here == set(), "these are gone"


@pytest.mark.parametrize("lazy", [False, True], ids=["when imported", "when called"])
def test_no_import_climbs(lazy: bool) -> None:
    climbing = [
        str(one)
        for one in imports()
        if one.lazy == lazy
        and one.importer != "dafw"
        and home(one.importer) != home(one.imported)
        and depth(one.importer) >= depth(one.imported)
    ]
    assert climbing == []


def test_the_package_itself_imports_nothing_before_it_is_asked() -> None:
    assert [str(one) for one in imports() if one.importer == "dafw" and not one.lazy] == []


def test_datamodules_import_data_alone() -> None:
    allowed = ("datamodules", *OF_DATAMODULES)
    found = [one for one in imports() if home(one.importer) == "datamodules" and home(one.imported) not in allowed]
    assert list(map(str, found)) == []


def test_no_method_imports_datamodules() -> None:
    found = [one for one in imports() if home(one.imported) == "datamodules" and one.importer != "dafw"]
    assert [str(one) for one in found if home(one.importer) not in USE_DATAMODULES] == []


@pytest.mark.parametrize("folder", ["dafw.tables", "dafw.tuning"])
def test_nothing_but_the_command_line_imports_tables_or_tuning(folder: str) -> None:
    found = {home(one.importer) for one in imports() if home(one.imported) == folder}
    assert found == {folder, "dafw.cli"}


def test_modules_form_no_circle() -> None:
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for one in imports():
        if not one.lazy and one.imported != one.importer:
            edges[one.importer].add(one.imported)
    assert circles(edges) == []


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (strongly connected components, after Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_a_circle_and_a_climb_would_be_seen() -> None:
    """The checks above see what they look for."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    seen = {(one.importer, one.imported, one.lazy) for one in imports()}
    assert ("dafw.run.entry", "dafw.run.commands", True) in seen
    assert ("dafw.run.commands", "dafw.run.result", False) in seen
    assert ("dafw.run.artifacts", "dafw.run.provenance", False) in seen
    assert depth("dafw.run.entry") < depth("dafw.methods.base") < depth("dafw.nn.network") < depth("dafw.data.batch")


def test_no_file_is_too_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


#: Packages that take long to import, and that torch and Lightning do not import anyway.
HEAVY = ("timm", "sklearn", "scipy", "wandb", "pandas", "huggingface_hub", "submitit", "optuna")
HEAVY += ("segmentation_models_pytorch",)


def heavy_imports(name: str, path: Path) -> Iterator[str]:
    """The imports of heavy packages that happen when a module is imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"{name}:{node.lineno} {other}" for other in names if other.split(".")[0] in HEAVY)


def test_what_takes_long_to_import_is_imported_when_it_is_needed(tmp_path: Path) -> None:
    found = [each for name, path in modules().items() for each in heavy_imports(name, path)]
    assert not [each for each in found if not each.startswith("dafw.tuning")]
    (tmp_path / "heavy.py").write_text("import os\nfrom sklearn.cluster import KMeans\n")
    assert list(heavy_imports("heavy", tmp_path / "heavy.py")) == ["heavy:2 sklearn.cluster"]
