"""A run knows the code that made it: digests of modules, found and read as text."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dafw.methods import DANN
from dafw.run.provenance import repositories
from dafw.run.sources import changed_since, digest_of, find_source, merged, sources_of

Write = Callable[[str, str], Path]
CODE = '''"""A module."""

from mine import helper  # theirs


class Model:
    """A class."""

    size = 3

    def grow(self, by=1):
        """Grows."""
        return self.size + by
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module of the user into a folder that Python searches; afterwards none of them is loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "mine":
            del sys.modules[name]


@pytest.fixture
def mine(write: Write) -> ModuleType:
    """The user's package: a model, a helper that it imports, and one that nobody does."""
    for name, text in {
        "__init__": "",
        "model": CODE,
        "helper": "import json\nfrom . import deep",
        "deep": "x = 1",
    }.items():
        write(f"mine/{name}", text)
    write("mine/other", "y = 1")
    return importlib.import_module("mine.model")


def test_words_change_nothing_and_code_does(write: Write) -> None:
    path = write("one", CODE)
    first = digest_of(path)
    for text in (
        CODE.replace("Grows.", "Grows by a number."),
        CODE.replace("  # theirs", ""),
        CODE + "\n\n# the end\n",
    ):
        assert digest_of(write("one", text)) == first, text
    changes = {
        "size = 3": "size = 4",
        "by=1": "by=1.0",
        "self.size + by": "self.size - by",
        "def grow": "async def grow",
    }
    digests = {digest_of(write("one", CODE.replace(old, new))) for old, new in changes.items()}
    assert len(digests - {first}) == len(changes)
    assert digest_of(write("one", "x = None")) != digest_of(write("two", "x = ..."))
    assert digest_of(write("one", "this is no Python")) != digest_of(write("two", "this is no Python either"))


def test_what_counts_of_the_users_code(mine: ModuleType, write: Write) -> None:
    sources = sources_of([mine.Model])
    assert list(sources) == ["mine", "mine.deep", "mine.helper", "mine.model"]
    assert changed_since(sources) == ()
    write("mine/other", "y = 2")
    assert changed_since(sources) == ()
    write("mine/deep", "x = 2")
    assert changed_since(sources) == ("mine/deep.py",)
    write("mine/__init__", "import os")
    assert changed_since(sources) == ("mine/__init__.py", "mine/deep.py")


def test_a_method_counts_with_its_bases_its_losses_and_nothing_installed() -> None:
    sources = sources_of([DANN])
    expected = {"adaptation.dann", "adaptation.base", "base", "optimisation"}
    assert {f"dafw.methods.{name}" for name in expected} | {"dafw.losses.adversarial", "dafw.nn.norm"} <= set(sources)
    assert {name.partition(".")[0] for name in sources} == {"dafw"}
    assert not {"dafw.run.result", "dafw.errors", "dafw.evaluation.evaluator"} & set(sources)
    assert changed_since(sources) == ()
    assert changed_since({**sources, "dafw.methods.base": "0" * 16}) == ("dafw/methods/base.py",)


def test_a_process_goes_on_with_the_code_that_it_has_loaded(mine: ModuleType, write: Write) -> None:
    first = sources_of([mine.Model])
    write("mine/model", CODE.replace("3", "4"))
    assert sources_of([mine.Model]) == first
    assert changed_since(first) == ("mine/model.py",)
    del sys.modules["mine.model"]
    again = sources_of([importlib.import_module("mine.model").Model])
    assert again["mine.model"] != first["mine.model"]
    assert changed_since(again) == ()


def test_a_module_that_is_gone(mine: ModuleType, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = sources_of([mine.Model])
    write("mine/helper", "").unlink()
    importlib.invalidate_caches()
    assert changed_since(sources) == ("mine/helper.py",)
    del sys.modules["mine.model"], sys.modules["mine"]
    monkeypatch.setattr(sys, "path", [])  # as from another folder: nobody knows
    assert changed_since({"mine.model": "0", "alone": "0", "__main__": "0"}) == ()


def test_a_run_that_went_on_with_other_code(mine: ModuleType) -> None:
    now = sources_of([mine.Model])
    assert merged({}, now) == now
    assert merged(now, now) == now
    assert changed_since(merged({**now, "mine.deep": "0" * 16}, now)) == ("mine/deep.py",)


def test_modules_are_found_without_being_imported(write: Write) -> None:
    assert find_source("json.decoder") is not None
    assert find_source("mine.bomb") is None
    path = write("mine/bomb", "raise SystemExit")
    assert find_source("mine.bomb") == path
    assert "mine" not in sys.modules


def test_the_repository_of_the_users_code(mine: ModuleType, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True, capture_output=True)

    modules = [*sources_of([mine.Model]), "dafw.methods.base", "absent"]
    assert repositories(modules) == {}
    git("init")
    (tmp_path / ".gitignore").write_text("deep.py\n__pycache__\n")
    git("add", "mine")
    git("commit", "-m", "first")
    (revision,) = repositories(modules).values()
    assert revision.endswith("-dirty")  # one of the modules is ignored
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("add", ".")
    git("commit", "-m", "second")
    assert list(repositories(modules)) == [tmp_path.name]
    assert not repositories(modules)[tmp_path.name].endswith("-dirty")
    (tmp_path / "mine/other.py").write_text("y = 3")
    assert repositories(modules)[tmp_path.name].endswith("-dirty")
