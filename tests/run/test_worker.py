"""One attempt at a run."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from dafw.run import worker
from dafw.run.worker import Order, attempt, serve


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """It fails, and no second attempt is made; the process goes on to the next run."""
    (tmp_path / "file").touch()
    outcome = attempt(lambda config, root: None, Order({}, tmp_path / "file" / "run", tmp_path))
    assert (outcome.status, outcome.retryable) == ("failed", False)
    assert outcome.error == f"{tmp_path}/file/run cannot be read or written (Not a directory)"


def test_a_worker_whose_parent_has_gone_ends_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal the parent closes its pipes, and waits for the runs to end."""
    ours, theirs = multiprocessing.Pipe()
    made: list[Path] = []

    def execute(config: dict[str, Any], root: Path) -> None:
        made.append(root)
        ours.close()

    monkeypatch.setattr(worker, "_prepare", lambda *_: execute)
    ours.send(Order({}, tmp_path / "run", tmp_path))
    serve(theirs, {}, "any:thing")
    assert made == [tmp_path]
