"""Results that other code made: a table names their rows and files, and makes them again if that is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from test_table_commands import run

from dafw.errors import UserError
from dafw.files import Busy
from dafw.run.directory import lock, run_directory
from dafw.tables.grid import Table
from dafw.tables.reading import load_table
from dafw.tables.render import render_markdown
from dafw.tables.sheet import make_sheet
from dafw.tables.store import load

OTHER = {"dafw.methods.base": "0" * 16}
SAID = "made by changed code: rows source only (dafw/methods/base.py)"
START: list[dict[str, Any]] = [
    {"name": "source only", "model": {"class_path": "SourceOnly"}},
    {"name": "SHOT", "model": {"class_path": "SHOT"}, "from": "source only"},
    {"name": "DANN", "model": {"class_path": "DANN"}},
]
ONE: dict[str, Any] = {"tasks": ["mnist->mnistm"], "seeds": [0]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def make(table: Table, root: Path, changed: tuple[str, ...]) -> None:
    """Results of all cells. Other code made those of the rows in ``changed``."""
    for cell in table.cells():
        sources = OTHER if cell.row in changed else {}
        fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.3, sources=sources)


def test_the_rows_and_the_files_are_named(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(**ONE)
    make(load_table(grid), root, ("source only",))
    assert run("status", grid, "--root", root) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"{SAID}: dafw table run --rerun stale makes them again"]
    for action in ("show", "run"):
        assert run(action, grid, "--root", root) == 0
        said = capsys.readouterr()
        assert said.err == f"dafw: warning: {SAID}; dafw table run --rerun stale makes them again\n"
        assert f"M{SAID[1:]}." in " ".join(said.out.split())
    assert fake_runs.calls(root) == []
    assert f"M{SAID[1:]}." in render_markdown(make_sheet(load(load_table(grid), root)))


def test_old_results_are_of_unknown_code(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(**ONE)
    make(load_table(grid), root, ())
    assert run("run", grid, "--root", root, "--rerun", "--workers", 1) == 0
    said = capsys.readouterr()
    assert "code" not in said.out + said.err
    assert fake_runs.calls(root) == []


@pytest.mark.parametrize(
    ("words", "rows"), [((), ("source only", "SHOT")), (("all",), ("source only", "SHOT", "DANN"))]
)
def test_they_are_made_again_with_what_starts_from_them(
    grid_file: Callable[..., Path],
    root: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    rows: tuple[str, ...],
) -> None:
    grid = grid_file(rows=START, **ONE)
    table = load_table(grid)
    make(table, root, ("source only",))
    names = [run_directory(cell.config, root).name for cell in table.cells() if cell.row in rows]
    again = ("run", grid, "--root", root, "--workers", 1, "--rerun", *words)
    assert run(*again, "--dry-run") == 0
    states = dict.fromkeys((cell.row for cell in table.cells()), "done") | dict.fromkeys(rows, "again")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(states.values())
    assert fake_runs.calls(root) == []
    assert run(*again) == 0
    said = capsys.readouterr()
    assert sorted(fake_runs.calls(root)) == sorted(names)
    assert fake_runs.calls(root)[0] == names[0]
    assert "changed code" not in said.out + said.err


def test_a_run_that_is_being_made_is_left_alone(grid_file: Callable[..., Path], root: Path) -> None:
    grid = grid_file(**ONE)
    table = load_table(grid)
    make(table, root, ("source only",))
    (directory,) = [run_directory(cell.config, root) for cell in table.cells() if cell.row == "source only"]
    with lock(directory), pytest.raises(Busy, match="another process works on"):
        run("run", grid, "--root", root, "--rerun")
    assert (directory / "result.json").exists()


def test_a_mistake_costs_no_result(grid_file: Callable[..., Path], root: Path) -> None:
    grid = grid_file(**ONE)
    table = load_table(grid)
    make(table, root, ("source only",))
    with pytest.raises(UserError, match="unknown selection criterion"):
        run("run", grid, "--root", root, "--rerun", "--select", "nonsense")
    assert all((run_directory(cell.config, root) / "result.json").exists() for cell in table.cells())


def test_many_files_are_counted(make_table: Callable[..., Table], root: Path) -> None:
    table = make_table(**ONE)
    sources = {
        f"dafw.methods.{name}": "0" for name in ("base", "serving", "restoring", "requests", "targets", "manual")
    }
    for cell in table.cells():
        fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.3, sources=sources)
    (said,) = load(table, root).origins
    assert said == (
        "made by changed code: rows source only, DANN, DANN control (dafw/methods/base.py, dafw/methods/serving.py, "
        "dafw/methods/restoring.py, dafw/methods/requests.py and 2 more)"
    )
