"""A table on a real SLURM cluster of one node, whose jobs are cancelled, put back and stopped at their time limit."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from commands import CHECKOUT, fork, until

sys.path.insert(0, str(CHECKOUT / "tests" / "faults"))

from interrupted import same

import dafw.tables.slurm
from dafw.tables.launch import make_jobs
from dafw.tables.reading import load_table

HERE = Path(__file__).parent
#: Three rows with four seeds.
TABLE = {
    "tasks": ["a->b"],
    "seeds": [0, 1, 2, 3],
    "rows": [{"name": name, "model": {"class_path": name}} for name in ("SourceOnly", "DANN", "DeepCORAL")],
    "base": {
        "model": {"init_args": {"network": {"init_args": {"backbone": "dafw.testing.toys.ToyNet"}}}},
        "data": {
            "class_path": "dafw.testing.toys.ToyData",
            "init_args": {"batch_size": 8, "steps_per_epoch": 4},
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "log_every_n_steps": 3,
            "callbacks": [{"class_path": "held.Held"}],
        },
        "run": {"plots": False, "checkpoint_every": 2},
    },
}


class Cluster:
    """One node, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.variables = folder, {"SLURM_CONF": str(folder / "slurm.conf")}
        self("bash", HERE / "one_node.sh", "start", folder)

    def __call__(self, *command: object) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(
            [str(part) for part in command],
            env=os.environ | self.variables | {"CPUS": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def tasks(self, *states: str) -> set[str]:
        """The array tasks in these states."""
        return set(self("squeue", "-h", "-r", "-o", "%i", "-t", ",".join(states)).split())

    def node(self, state: str) -> None:
        """Drains or resumes the node."""
        self("scontrol", "update", f"nodename={socket.gethostname().split('.')[0]}", f"state={state}", "reason=a test")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    try:
        yield Cluster(folder)
    finally:
        subprocess.run(["bash", str(HERE / "one_node.sh"), "stop", str(folder)], check=True)


def ask_often() -> None:
    """The queue of this cluster has no other users."""
    dafw.tables.slurm.QUEUE_POLL = 1.0


@pytest.mark.slurm
def test_a_table_whose_jobs_are_disturbed(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells are made, none twice, and the weights are those of undisturbed runs, bit for bit."""
    monkeypatch.syspath_prepend(str(HERE))
    held = tmp_path / "held"
    held.mkdir()
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(TABLE))
    variables = {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(CHECKOUT)]),
        "DAFW_TESTS_HELD": str(held),
        "OMP_NUM_THREADS": "1",
        **cluster.variables,
    }
    run = ("table", "run", tmp_path / "t.yaml")
    whole = fork(tmp_path / "whole", *run, "--workers", "1", **variables).wait(180)
    assert whole.code == 0, whole

    jobs = [job.directory for job in make_jobs(load_table(tmp_path / "t.yaml"), tmp_path / "runs")]
    cancelled, requeued, limited, finished = jobs[:4]
    for job in jobs[:4]:
        (held / job.name).touch()
    slurm = ("--launcher", "slurm", "--slurm", "time=30", "warning=10", "cpus=1")
    launched = fork(tmp_path, *run, *slurm, setup=ask_often, **variables)

    def comes(happens: Callable[[], bool], what: str) -> None:
        assert until(lambda: launched.poll() is not None or happens(), 120), f"{what}: {launched.out} {launched.err}"
        assert launched.poll() is None, (launched.out, launched.err)

    def stops_and_goes_on(job: Path) -> None:
        comes(lambda: (job / "checkpoints" / "step=5.ckpt").exists(), f"{job.name} saves where it is held")
        (held / job.name).unlink()

    comes(lambda: len(list(held.glob("*.reached"))) == 4, "four runs are held")
    running = cluster.tasks("R")
    array = next(iter(running)).partition("_")[0]
    assert running == {f"{array}_{number}" for number in range(4)}

    cluster.node("drain")
    (held / finished.name).unlink()
    comes(lambda: (finished / "result.json").exists(), "a run of a node that is drained ends")
    cluster("bash", HERE / "one_node.sh", "restart", cluster.folder)
    comes(lambda: f"{array}_3" not in cluster.tasks("R", "CG"), "the controller is back")
    time.sleep(3)
    assert cluster.tasks("R") == running - {f"{array}_3"}
    cluster.node("resume")

    cluster("scancel", f"{array}_0")
    stops_and_goes_on(cancelled)
    cluster("scontrol", "requeue", f"{array}_1")
    stops_and_goes_on(requeued)
    cluster("scontrol", "update", f"jobid={array}_2", "timelimit=1")
    stops_and_goes_on(limited)

    done = launched.wait(240)
    assert (done.code, done.err) == (0, ""), done
    assert "[12/12]" in done.out
    for job in jobs:
        same(job, tmp_path / "whole" / "runs" / job.name)
        log = (job / "log.txt").read_text()
        assert log.count("done in ") == 1, log
        assert ("stopped by SIGTERM at step 5" in log) == (job in (cancelled, requeued, limited)), log
    assert "Requeued job" in "".join(path.read_text() for path in tmp_path.glob(f"runs/tables/t/slurm/{array}_2*.out"))
