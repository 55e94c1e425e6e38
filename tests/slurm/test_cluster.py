"""A table on a real SLURM cluster of one node, whose jobs are cancelled, put back and stopped at their time limit."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import CHECKOUT, fork, one_run, until
from held import Holding

sys.path.insert(0, str(CHECKOUT / "tests" / "faults"))

from interrupted import FIT, ranks, same

import dafw.tables.slurm

HERE = Path(__file__).parent


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

    def limit(self, task: str) -> None:
        """Lets a task reach its time limit soon. SLURM looks every half minute, and must look once before that."""
        minutes, seconds = map(int, self("squeue", "-h", "-r", "-j", task, "-o", "%M").strip().split(":"))
        self("scontrol", "update", f"jobid={task}", f"timelimit={minutes + (1 if seconds < 20 else 2)}")

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
@pytest.mark.timeout(1200)
def test_a_table_whose_jobs_are_disturbed(tmp_path: Path, cluster: Cluster) -> None:
    """All cells are made, none twice, and the weights are those of undisturbed runs, bit for bit."""
    table = Holding(tmp_path, rows=("SourceOnly", "DANN", "DeepCORAL"), seeds=(0, 1, 2, 3))
    variables = {
        **table.variables,
        **cluster.variables,
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT)]),
        "OMP_NUM_THREADS": "1",
    }
    whole = fork(tmp_path / "whole", "table", "run", table.file, "--workers", "1", **variables).wait(300)
    assert whole.code == 0, whole
    cancelled, requeued, limited, finished = table.directories[:4]
    table.hold(*table.directories[:4])
    slurm = ("--launcher", "slurm", "--slurm", "time=30", "warning=10", "cpus=1")
    launched = fork(tmp_path, "table", "run", table.file, *slurm, setup=ask_often, **variables)

    def comes(happens: Callable[[], bool], what: str) -> None:
        assert until(lambda: launched.poll() is not None or happens(), 300), f"{what}: {launched.out} {launched.err}"
        assert launched.poll() is None, (launched.out, launched.err)

    def stops_and_goes_on(directory: Path) -> None:
        comes(lambda: (directory / "checkpoints" / "step=5.ckpt").exists(), f"{directory.name} saves where it is held")
        table.release(directory)

    comes(lambda: all(table.holder(directory) for directory in table.directories[:4]), "four runs are held")
    running = cluster.tasks("R")
    array = next(iter(running)).partition("_")[0]
    assert running == {f"{array}_{number}" for number in range(4)}

    cluster.node("drain")
    table.release(finished)
    comes(lambda: (finished / "result.json").exists(), "a run of a node that is drained ends")
    cluster("bash", HERE / "one_node.sh", "restart", cluster.folder)
    comes(lambda: f"{array}_3" not in cluster.tasks("R", "CG"), "the controller is back")
    time.sleep(3)
    assert cluster.tasks("R") <= running
    cluster.node("resume")

    cluster.limit(f"{array}_2")
    cluster("scancel", f"{array}_0")
    stops_and_goes_on(cancelled)
    cluster("scontrol", "requeue", f"{array}_1")
    stops_and_goes_on(requeued)
    stops_and_goes_on(limited)

    done = launched.wait(600)
    assert (done.code, done.err) == (0, ""), done
    assert "[12/12]" in done.out
    for directory in table.directories:
        same(directory, tmp_path / "whole" / "runs" / directory.name)
        log = (directory / "log.txt").read_text()
        assert log.count("done in ") == 1, log
        assert ("stopped by SIGTERM at step 5" in log) == (directory in (cancelled, requeued, limited)), log
    said = "".join(path.read_text() for path in tmp_path.glob(f"runs/tables/t/slurm/*/{array}_2*_log.*"))
    assert "Requeued job" in said


@pytest.mark.slurm
@pytest.mark.timeout(1200)
def test_cells_of_two_ranks_that_are_cancelled(tmp_path: Path, cluster: Cluster) -> None:
    """The status names the jobs, cancelling ends them for good, and the same command goes on from their checkpoints."""
    table = Holding(tmp_path, rows=("DANN",), seeds=(0, 1, 2))
    path = os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT)])
    variables = {**table.variables, **cluster.variables, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    two = ("--set", "trainer.devices=2")
    whole = fork(tmp_path / "whole", "table", "run", table.file, "--workers", "1", *two, **variables).wait(600)
    assert whole.code == 0, whole
    first, second, third = table.directories
    table.hold(first, second)
    slurm = ("--launcher", "slurm", "--slurm", "time=30", "cpus=2")
    launched = fork(tmp_path, "table", "run", table.file, *slurm, *two, setup=ask_often, **variables)
    held = until(lambda: launched.poll() is not None or all(map(table.holder, (first, second))), 300)
    assert held, (launched.out, launched.err)

    said = fork(tmp_path, "table", "status", table.file, *two, **variables).wait(60).out
    array = (first / "job.txt").read_text().partition("_")[0]
    assert f"running      DANN a->b seed 0: job {array}_0 is running (" in said
    assert f"missing      DANN a->b seed 2: job {array}_2 is pending (Resources)" in said
    ended = fork(tmp_path, "table", "cancel", table.file, *two, **variables).wait(60)
    assert ended.out == "".join(f"job {array}_{number} is cancelled\n" for number in range(3))
    given_up = launched.wait(300)
    assert given_up.code == 1
    assert given_up.out.count("dafw table cancel ended its job") >= 3
    assert until(lambda: not cluster.tasks("R", "CG", "PD"), 60)
    assert not (third / "config.yaml").exists()

    table.release(first)
    table.release(second)
    done = fork(tmp_path, "table", "run", table.file, *slurm, *two, setup=ask_often, **variables).wait(600)
    assert (done.code, done.err) == (0, ""), done
    for directory in table.directories:
        same(directory, tmp_path / "whole" / "runs" / directory.name)
    # SLURM signals every rank at once, and one may end before the others have saved.
    assert "resuming from step" in (first / "log.txt").read_text()


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_two_tasks_of_srun(tmp_path: Path, cluster: Cluster) -> None:
    """Each task of a step is a rank."""
    fit = (*FIT, "--trainer.devices", "2")
    variables = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    first, second = ranks(tmp_path / "whole", *fit)
    assert (first.code, second.code) == (0, 0), (first, second)
    (tmp_path / "srun").mkdir()
    step = ("srun", "-n", "2", "--ntasks-per-node", "2", "-D", tmp_path / "srun")
    given = ("env", *(f"{key}={value}" for key, value in variables.items()))
    cluster(*step, *given, sys.executable, "-m", "dafw", *fit)
    same(one_run(tmp_path / "srun" / "runs"), one_run(tmp_path / "whole" / "runs"))
