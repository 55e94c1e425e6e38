"""A working directory of its own for each test, and an environment that it cannot change for the others."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = dict(os.environ)
    yield tmp_path
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end at once."""
    from tuned import fake_run

    monkeypatch.setattr("dafw.tuning.trials.execute", fake_run)
    monkeypatch.setattr("dafw.run.worker._clean", lambda: None)  # a quarter of a second, for nothing here
