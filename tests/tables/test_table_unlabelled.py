"""Targets without labels in a table: their runs are done, and a sentence says why they have no number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from commands import call

from dafw.run.directory import run_directory
from dafw.tables.grid import Table
from dafw.tables.launch import Job, make_jobs, percent_text, run_table
from dafw.tables.progress import Lines
from dafw.tables.reading import load_table
from dafw.tables.sheet import make_sheet
from dafw.tables.status import states
from dafw.tables.store import load

SAID = "mnistm has no labels, so there is no number of a task with such a target."


def write(table: Table, root: Path) -> None:
    """Results of all runs; mnistm has no labels."""
    for cell in table.runs():
        parts: dict[str, Any] = {}
        if cell.task.endswith("mnistm"):
            source = cell.config["data"]["init_args"]["source"]
            parts = {"undefined_reason": {"mnistm": "mnistm has no labels"}, "test": {source[0]: {"accuracy": 0.9}}}
        fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.8, **parts)


@pytest.mark.parametrize("tasks", [["mnist->mnistm"], ["mnist->mnistm", "optdigits->mnist"]])
def test_it_is_said_once_and_nothing_fails(
    grid_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], tasks: list[str]
) -> None:
    path, root = grid_file(tasks=tasks), tmp_path / "runs"
    table = load_table(path)
    write(table, root)
    store = load(table, root)
    assert not store.broken
    assert set(states(store).values()) == {"done"}
    sheet = make_sheet(store)
    assert (sheet.missing, SAID in sheet.caption) == ((), True)
    done = call(capsys, "table", "run", path, "--root", root)
    assert done.code == 0, done
    flat = " ".join(done.out.split())
    assert (flat.count(SAID), "Broken" in flat, "no number:" in flat) == (1, False, False)
    assert ("80.0" in flat) is (len(tasks) > 1)


def test_such_a_run_is_not_made_again(grid_file: Callable[..., Path], tmp_path: Path) -> None:
    from rich.console import Console

    table, root = load_table(grid_file(tasks=["mnist->mnistm"], seeds=[0])), tmp_path / "runs"
    write(table, root)
    jobs: list[Job] = make_jobs(table, root)
    assert {percent_text(job.result("accuracy") or 0.0) for job in jobs} == {
        "no number, since the target has no labels,"
    }
    assert all(job.done for job in jobs)
    report = run_table(table, root, Lines(Console(quiet=True)), function="fake_runs:execute")
    assert (report.skipped, report.made, report.exit_code) == (len(jobs), 0, 0)
