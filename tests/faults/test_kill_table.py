"""A worker of a table that is killed, while a second launch works on the same table."""

import os
import signal
from pathlib import Path

import pytest
import yaml
from commands import fork, until
from held import Holding
from interrupted import same


@pytest.mark.slow
def test_a_killed_worker_and_two_launches(tmp_path: Path) -> None:
    """Every cell is made once, and ends as a run that was not disturbed; both launches end with 0."""
    table = Holding(tmp_path, rows=("SourceOnly", "DANN"), seeds=(0, 1))
    first, *others = table.directories
    table.hold(first)
    command = ("table", "run", table.file, "--workers", "1")
    one = fork(tmp_path, *command, **table.variables)
    assert until(lambda: table.holder(first) is not None, 120), (one.out, one.err)
    other = fork(tmp_path, *command, **table.variables)
    for job in table.jobs:
        config = tmp_path / f"{job.directory.name}.yaml"
        config.write_text(yaml.safe_dump(job.cell.config))
        made = ("--config", config, "--run.dir", Path("runs", job.directory.name))
        assert fork(tmp_path / "whole", "fit", *made, DAFW_TESTS_HELD=str(tmp_path)).wait().code == 0
    assert until(lambda: all((directory / "result.json").exists() for directory in others), 120), (other.out, other.err)
    assert not (first / "result.json").exists()
    os.kill(table.holder(first) or 0, signal.SIGKILL)
    table.release(first)
    ended = [each.wait(120) for each in (one, other)]
    assert [(each.code, each.err) for each in ended] == [(0, ""), (0, "")]
    assert "the worker died: killed by SIGKILL (out of memory?); trying once more" in ended[0].out
    for directory in table.directories:
        same(directory, tmp_path / "whole" / "runs" / directory.name)
        assert (directory / "log.txt").read_text().count("done in ") == 1
