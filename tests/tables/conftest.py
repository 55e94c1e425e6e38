"""A small table, and results without training."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # spawned workers inherit it, so that they find fake_runs

import fake_runs

from dafw.run.directory import run_directory
from dafw.tables.grid import Table
from dafw.tables.reading import load_table

GRID: dict[str, Any] = {
    "tasks": ["mnist->mnistm", "optdigits->mnist"],
    "seeds": [0, 1, 2],
    "base": {"data": {"class_path": "Digits", "init_args": {"batch_size": 8}}, "trainer": {"max_epochs": 1}},
    "rows": [
        {"name": "source only", "model": {"class_path": "SourceOnly"}},
        {"name": "DANN", "model": {"class_path": "DANN", "init_args": {"gamma": 5}}, "control": True},
    ],
}
MakeTable = Callable[..., Table]


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table file: the small grid with some keys changed (None removes one)."""

    def write(stem: str = "digits", **changes: Any) -> Path:
        given = {key: value for key, value in (GRID | changes).items() if value is not None}
        path = tmp_path / f"{stem}.yaml"
        path.write_text(yaml.safe_dump(given), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_table(grid_file: Callable[..., Path]) -> MakeTable:
    """A loaded table file."""

    def make(**changes: Any) -> Table:
        return load_table(grid_file(**changes))

    return make


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Path]:
    """Writes results for the cells of a table: ``accuracy(row, task, seed)`` is a fraction or None (no result)."""

    def write(table: Table, accuracy: Callable[[str, str, int], float | None], **parts: Any) -> Path:
        root = tmp_path / "runs"
        for cell in table.cells():
            value = accuracy(cell.row, cell.task, cell.seed)
            if value is not None:
                fake_runs.write_result(run_directory(cell.config, root), cell.config, value, **parts)
        return root

    return write
