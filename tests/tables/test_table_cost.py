"""What ``dafw table show`` costs: neither torch nor matplotlib for a table that is drawn already, one read a cell."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from commands import environment
from test_table_commands import run

from dafw.run.criteria import READS_SOURCE
from dafw.selection import VALIDATORS
from dafw.tables import commands
from dafw.tables.reading import load_table

WATCHED = """
import collections, json, os, sys

opened = collections.Counter()
sys.addaudithook(lambda event, given: opened.update([os.path.basename(str(given[0]))] if event == "open" else []))
from dafw.cli import main

code = main(sys.argv[1:])
heavy = [name for name in ("torch", "matplotlib", "pytorch_lightning", "scipy.stats") if name in sys.modules]
print(json.dumps([code, heavy, opened["result.json"], opened["table.png"]]))
"""


def parts(setting: str, *names: str) -> dict[str, Any]:
    """A run of a setting with these validators."""
    scores, test = dict.fromkeys(names, 0.5), {"mnistm": {"accuracy": 0.5}}
    history = [{"step": 1, "validators": scores, "oracle": {}, "test": test}]
    return {"history": history, "setting": fake_runs.SETTINGS[setting], "test": test}


def test_a_drawn_table_needs_no_torch_and_reads_each_result_once(
    grid_file: Callable[..., Path], fill: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(tasks=["mnist->mnistm"], select=["last", "source_accuracy", "im"], seeds=[0, 1])
    table = load_table(grid)
    fill(table, lambda *_: 0.5, **parts("adaptation", "im", "source_accuracy"))
    sees_no_target = parts("generalization", "source_accuracy")
    root = fill(table, lambda row, *_: 0.5 if row == "source only" else None, **sees_no_target)
    assert run("show", grid, "--root", root) == 0
    arguments = ["table", "show", str(grid), "--root", str(root)]
    command = [sys.executable, "-c", WATCHED, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], len(table.runs()), 2]  # its key, then its bytes


def test_what_is_printed_comes_before_the_pictures(
    grid_file: Callable[..., Path],
    fill: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_file(seeds=[0])
    root, said = fill(load_table(grid), lambda *_: 0.5), []
    monkeypatch.setattr(commands, "write_pages", lambda *_: said.append(capsys.readouterr().out))
    for words in ((), ("--format", "csv")):
        assert run("show", grid, "--root", root, *words) == 0
        assert "DANN" in said.pop()


def test_what_a_table_knows_of_validators_is_what_they_say() -> None:
    assert {name: validator.needs_source for name, validator in VALIDATORS.items()} == READS_SOURCE
