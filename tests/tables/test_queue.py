"""The jobs of a table in SLURM's queue, with programs that stand in for SLURM's."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from dafw.errors import UserError
from dafw.run.worker import FAILED
from dafw.tables.grid import Table
from dafw.tables.queue import JOB, cancel, job_of, note_job, queue
from dafw.tables.reading import load_table
from dafw.tables.status import describe
from dafw.tables.store import load

Programs = Callable[..., Path]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Puts ``squeue``, which prints this, and ``scancel``, which keeps its arguments, before all programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(listed: str, code: int = 0, cancels: int = 0) -> Path:
        (folder / "listed").write_text(listed)
        texts = {
            "squeue": f'cat "{folder}/listed"; exit {code}',
            "scancel": f'echo "$@" >> "{folder}/ended"; exit {cancels}',
        }
        for name, text in texts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return folder / "ended"

    return write


LISTED = "7_0|RUNNING|node|4\n7_1|PENDING|(Resources)\n7_2|COMPLETING|\n"


def test_what_slurm_lists(programs: Programs) -> None:
    programs(LISTED)
    jobs = queue()
    assert jobs is not None
    assert {number: str(job) for number, job in jobs.items()} == {
        "7_0": "running (node|4)",
        "7_1": "pending (Resources)",
        "7_2": "completing",
    }
    programs("", code=1)
    assert queue() is None


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue() is None
    with pytest.raises(UserError, match="squeue does not answer"):
        cancel([tmp_path])


def test_the_status_says_job_and_reason(make_table: Callable[..., Table], tmp_path: Path, programs: Programs) -> None:
    programs(LISTED)
    table = make_table(rows=[{"name": "DANN", "model": {"class_path": "DANN"}}], tasks=["mnist->mnistm"])
    store = load(table, tmp_path / "runs")
    waits, failed, lost = store.directories.values()
    note_job(waits, "7_1")
    note_job(failed, "6_3")
    (failed / FAILED).write_text("the loss is not finite\n")
    lost.mkdir(parents=True)
    said = describe(store)
    assert "missing      DANN mnist->mnistm seed 0: job 7_1 is pending (Resources)" in said
    assert f"failed       DANN mnist->mnistm seed 1: the loss is not finite, job 6_3 (see {failed}/log.txt)" in said
    assert "missing      DANN mnist->mnistm seed 2\n" in f"{said}\n"


def test_cancelling(
    grid_file: Callable[..., Path], tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = programs(LISTED)
    grid = grid_file(rows=[{"name": "DANN", "model": {"class_path": "DANN"}}], tasks=["mnist->mnistm"])
    runs = tmp_path / "runs"
    directories = list(load(load_table(grid), runs).directories.values())
    for directory, number in zip(directories, ("7_0", "7_0", "6_1"), strict=True):
        note_job(directory, number)
    assert call(capsys, "table", "cancel", grid, "--root", runs) == (0, "job 7_0 is cancelled\n", "")
    assert ended.read_text() == "7_0\n"
    assert [job_of(directory) for directory in directories] == ["", "", "6_1"]
    assert not (directories[0] / JOB).exists()
    assert "no run of the table has a job in the queue" in call(capsys, "table", "cancel", grid, "--root", runs).out


def test_slurm_refuses(tmp_path: Path, programs: Programs) -> None:
    programs(LISTED, cancels=1)
    note_job(tmp_path / "run", "7_0")
    with pytest.raises(UserError, match="SLURM does not cancel"):
        cancel([tmp_path / "run"])
