"""The code that made a run: a digest of each module that its numbers come from.

Modules are found and read as text: this imports no module, so a table is compared with the code in a moment.
"""

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from weakref import WeakKeyDictionary

Sources = Mapping[str, str]
"""By module, a digest of its source: 16 hexadecimal digits."""
PROJECT = ("dafw", "datamodules")
"""The packages of this project, which are compared although they may be installed."""
COMPUTING = ("dafw.losses.", "dafw.nn.", "dafw.optim.", "dafw.data.corruptions")
"""The packages of this project whose modules count if a module that counts imports them."""
_loaded: "WeakKeyDictionary[ModuleType, str]" = WeakKeyDictionary()


def sources_of(classes: Iterable[type]) -> dict[str, str]:
    """The modules of these classes and of their bases, with what they import, as they were when they were loaded.

    Of installed packages and of the standard library nothing counts. The user's modules are followed to whatever they
    import of the user's; modules of this project to :data:`COMPUTING` alone, since the rest trains nothing. A module
    that is edited later keeps the digest of its first call here, since the process goes on with what it has loaded.
    """
    waiting = sorted({base.__module__ for owner in classes for base in owner.__mro__})
    found: dict[str, str] = {}
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        path = find_source(name)
        if path is None or not _counts(name, path):
            continue
        module = sys.modules.get(name)
        found[name] = digest_of(path) if module is None else _loaded.setdefault(module, digest_of(path))
        further = set(_imports(name, path)) - seen
        seen |= further
        waiting += sorted(one for one in further if not _is_project(one) or one.startswith(COMPUTING))
    return dict(sorted(found.items()))


def changed_since(sources: Sources) -> tuple[str, ...]:
    """The files whose code differs now from that which a result knows, such as ``dafw/methods/base.py``.

    A module that is found nowhere is unknown, and no difference, unless the package that it was in is there.
    """
    files = []
    for name, digest in sources.items():
        path = find_source(name)
        if path is None:
            top = name.partition(".")[0]
            gone = top != name and _spec(top) is not None
        else:
            gone = digest_of(path) != digest
        if gone:
            files.append(file_name(name, path))
    return tuple(files)


def merged(began_with: Sources, now: Sources) -> dict[str, str]:
    """The code of a run that goes on. A module that changed meanwhile has both digests: no code alone made the run."""
    return {
        name: digest if began_with.get(name, digest) == digest else f"{began_with[name]}+{digest}"
        for name, digest in now.items()
    }


def file_name(module: str, path: Path | None) -> str:
    """A module's file as a person knows it: its path from the folder of its package."""
    inside = module.replace(".", "/")
    return f"{inside}/__init__.py" if path is not None and path.name == "__init__.py" else f"{inside}.py"


class _Content(NamedTuple):
    """What is known of a file: its digest, and of each import the level, the module and the names in it."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


def digest_of(path: Path) -> str:
    """The digest of a file's syntax tree without comments, docstrings and layout: words alone change nothing.

    A file that is no Python counts by its bytes.
    """
    return _read(path).digest


def _read(path: Path) -> _Content:
    status = path.stat()
    return _read_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _read_once(path: Path, modified: int, size: int) -> _Content:
    content, imports = path.read_bytes(), list[tuple[int, str, tuple[str, ...]]]()
    with suppress(SyntaxError, ValueError, RecursionError):
        tree = ast.parse(content)
        content = repr(_form(tree)).encode("utf-8", "surrogatepass")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports += [(0, alias.name, ()) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return _Content(hashlib.blake2b(content, digest_size=8).hexdigest(), tuple(imports))


def _form(node: object) -> object:
    """A syntax tree as nested tuples. What is empty is left out, since versions of Python add fields that may be."""
    if isinstance(node, list):
        return tuple(_form(one) for one in node if not _is_text(one))
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return (type(node).__name__, *((name, _form(value)) for name, value in fields))
    return node


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def find_source(module: str) -> Path | None:
    """The file of a module, found as an import would find it; ``None`` if there is none. Nothing is imported."""
    parts = module.split(".")
    spec = _spec(parts[0]) if module != "__main__" else None  # another program has another one
    for number in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:number]), list(spec.submodule_search_locations))
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    return origin if origin is not None and origin.suffix == ".py" and origin.is_file() else None


def _spec(top: str) -> ModuleSpec | None:
    """Where a module or package outside any package is."""
    with suppress(ImportError, ValueError, AttributeError):  # for a module without a specification
        return importlib.util.find_spec(top)
    return None


def _is_project(module: str) -> bool:
    return module.partition(".")[0] in PROJECT


def _counts(module: str, path: Path) -> bool:
    """Whether a module is of this project or of the user: neither of an installed package nor of Python itself."""
    if _is_project(module):
        return True
    return module.partition(".")[0] not in sys.stdlib_module_names and not is_installed(path)


def is_installed(path: Path) -> bool:
    """Whether a file lies where packages are installed."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(installed) or path.is_relative_to(sysconfig.get_path("stdlib"))


def _imports(module: str, path: Path) -> Iterator[str]:
    """The modules that a module may import, wherever it does: ``from a import b`` may mean ``a`` and ``a.b``."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for level, base, names in _read(path).imports:
        above = package[: len(package) - level + 1] if level else []
        home = ".".join([*above, *filter(None, [base])])
        yield from filter(None, (home, *(f"{home}.{name}".lstrip(".") for name in names)))
