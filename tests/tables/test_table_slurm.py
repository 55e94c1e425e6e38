"""The SLURM launcher: its options, and the grid through submitit's executor for this machine."""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from commands import CHECKOUT
from rich.console import Console

from dafw.errors import UserError
from dafw.run.worker import Order
from dafw.tables.grid import Table
from dafw.tables.launch import Report, make_jobs
from dafw.tables.overlay import parse_settings
from dafw.tables.progress import Lines
from dafw.tables.slurm import Chunk, Cluster, Warned, parse_cluster, submit_table

Make = Callable[..., Table]


def test_options_become_parameters_of_submitit() -> None:
    given = [
        "partition=gpu",
        "time=1-02:03:04",
        "gpus=a100:1",
        "cpus=8",
        "parallel=16",
        "setup=module load x",
        "chunk=2",
    ]
    assert parse_cluster([*given, "warning=90", "requeues=3"]) == Cluster(
        parameters={
            "timeout_min": 1440 + 123 + 1,
            "slurm_partition": "gpu",
            "slurm_gpus_per_node": "a100:1",
            "slurm_cpus_per_task": 8,
            "slurm_array_parallelism": 16,
            "slurm_setup": ["module load x"],
            "slurm_signal_delay_s": 90,
        },
        chunk=2,
        requeues=3,
    )
    assert parse_cluster([]).parameters == {"timeout_min": 60}


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90:00", 90), ("0:30", 1), ("4:00:00", 240), ("1:05:01", 66)]
)
def test_times_are_those_of_slurm(text: str, minutes: int) -> None:
    assert parse_cluster([f"time={text}"]).parameters["timeout_min"] == minutes


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("partition", "key=value"),
        ("partition=", "key=value"),
        ("partiton=gpu", 'did you mean "partition"'),
        ("time=soon", "--slurm time is minutes"),
        ("time=0", "at least a minute"),
        ("cpus=many", "--slurm cpus is a whole number"),
        ("chunk=0", "--slurm chunk is a whole number"),
        ("cluster=grid", "slurm"),
    ],
)
def test_a_wrong_option(setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_cluster([setting])


def test_the_options_in_the_documentation() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "docs").glob("*.md"))
    commands = re.findall(r"--launcher slurm --slurm (.*)", text)
    assert commands
    for command in commands:
        parse_cluster(command.split("`")[0].split())


def test_without_submitit_the_command_to_install_it_is_said(
    make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'pip install "dafw\[slurm\]"'):
        submit_table(make_table(), tmp_path, Lines(Console(file=io.StringIO())), parse_cluster([]))


def test_a_cluster_that_is_not_there(make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="the cluster did not take the jobs"):
        submit_table(make_table(), tmp_path, Lines(Console(file=io.StringIO())), parse_cluster([]))


def test_an_unknown_partition(make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SLURM refuses one; no run has begun."""
    tools, runs = tmp_path / "bin", tmp_path / "runs"
    tools.mkdir()
    said = "sbatch: error: invalid partition specified: gppu\nsbatch: error: Invalid partition name specified"
    for name in ("sbatch", "srun", "squeue"):
        (tools / name).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"the cluster did not take the jobs: .*Invalid partition name specified$"):
        submit_table(make_table(), runs, Lines(Console(file=io.StringIO())), parse_cluster(["partition=gppu"]))
    assert not [path for path in runs.rglob("*") if path.is_file()], "nothing is left of what was refused"


def submit(table: Table, root: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[Report, str]:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))
    file = io.StringIO()
    reporter = Lines(Console(file=file, width=200))
    cluster = parse_cluster(["cluster=local", *settings])
    root.mkdir(exist_ok=True)
    return submit_table(table, root, reporter, cluster, function="fake_runs:execute", poll=0.1), file.getvalue()


def test_the_grid_through_submitit(make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "X", "model": {"class_path": "X"}},
        {"name": "once", "model": {"class_path": "Y"}, "run": {"behave": "raise once"}},
        {"name": "never", "model": {"class_path": "Z"}, "run": {"behave": "die"}},
        {"name": "mistake", "model": {"class_path": "W"}, "run": {"behave": "mistake"}},
    ]
    table = make_table(seeds=[0], tasks=["mnist->mnistm"], rows=rows)
    root = tmp_path / "runs"
    report, said = submit(table, root, monkeypatch)
    assert (report.made, report.exit_code) == (2, 1)
    errors = {job.cell.row: job.error for job in report.failed}
    assert set(errors) == {"never", "mistake"}
    assert "died, see" in errors["never"]
    assert errors["mistake"] == "there is no such layer"
    counts = [fake_runs.calls(root).count(job.directory.name) for job in make_jobs(table, root)]
    assert counts == [1, 2, 2, 1]
    assert "once mnist->mnistm seed 0: broke badly; trying once more" in said
    report, _ = submit(table.only(["X", "once"], [], []), root, monkeypatch)
    assert (report.skipped, report.exit_code) == (2, 0)


def test_chunks_share_a_task(make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(seeds=[0])
    report, _ = submit(table, tmp_path / "runs", monkeypatch, "chunk=4")
    assert report.made == 6
    logs = list((tmp_path / "runs" / "tables" / "digits" / "slurm").glob("*/*_log.out"))
    assert len(logs) == 2


def test_a_warning_before_the_end_saves_and_then_lets_submitit_put_the_task_back(
    make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster's signal reaches the run as SIGTERM, and submitit's handler afterwards, exactly once."""
    table = make_table(seeds=[0], tasks=["mnist->mnistm"]).with_settings(parse_settings(["run.behave=train"]))
    jobs = make_jobs(table, tmp_path)
    orders = [Order(job.cell.config, job.directory, tmp_path) for job in jobs]
    requeued: list[bool] = []

    def handler(signum: int, frame: object) -> None:
        requeued.append((jobs[0].directory / "checkpoint").exists())
        raise SystemExit(-1)

    kept = signal.signal(signal.SIGUSR2, handler), signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        Path(jobs[0].directory).mkdir()
        watcher = os.fork()
        if watcher == 0:
            while not (jobs[0].directory / "training").exists():
                time.sleep(0.01)
            os.kill(os.getppid(), signal.SIGUSR2)
            os._exit(0)
        chunk = Chunk(orders, "fake_runs:execute")
        with pytest.raises(SystemExit):
            chunk()
        os.waitpid(watcher, 0)
        assert requeued == [True]
        assert signal.getsignal(signal.SIGUSR2) is handler
        assert len(fake_runs.calls(tmp_path)) == 1
        assert chunk.checkpoint().function is chunk
    finally:
        signal.signal(signal.SIGUSR2, kept[0])
        signal.signal(signal.SIGTERM, kept[1])


def test_a_warning_before_training_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    kept = signal.signal(signal.SIGUSR2, lambda signum, frame: called.append(signum))
    try:
        warning = Warned()
        with pytest.raises(SystemExit), warning:
            signal.raise_signal(signal.SIGUSR2)
        assert called == []
        warning.hand_over()
        assert called == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, kept)
