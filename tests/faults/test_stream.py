"""A run that is killed in the middle of a test stream goes on there, with all that it has served."""

import os
import signal
from pathlib import Path

import pytest
import torch
from commands import QUICK, fork, one_run
from interrupted import at_step, same

DATA = (
    "--data",
    "dafw.testing.toys.ToyData",
    "--data.source",
    "a",
    "--data.target",
    "[b, c]",
    "--data.batch_size",
    "8",
)
FIT = ("fit", "--model", "DRMRetraining", *DATA, "--trainer.accelerator", "cpu", "--run.plots", "false")
FIT = (*FIT, "--model.retrain", "network", "--model.confidence", "0", "--model.labels", "shared", "--model.lr", "0.1")
FIT = (*FIT, "--run.checkpoint_every", "1", "--trainer.log_every_n_steps", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directories of a DRM's run and of a retraining that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert fork(folder, "fit", "--model", "DRM", *QUICK, "--run.root", "first").wait().code == 0
    start = one_run(folder / "first")
    done = fork(folder, *FIT, "--model.checkpoint", start).wait()
    assert (done.code, done.err) == (0, "")
    return start, one_run(folder / "runs")


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_killed_stream_goes_on_where_it_was(tmp_path: Path, whole: tuple[Path, Path], steps: int) -> None:
    """Two targets of 21 samples, so three batches each; after the third the second target begins."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    start, expected = whole
    fit = (*FIT, "--model.checkpoint", start)
    assert fork(tmp_path, *fit, setup=at_step(steps + 1, die)).wait().code == -signal.SIGKILL
    folder = one_run(tmp_path / "runs")
    held = torch.load(folder / "checkpoints" / f"step={steps}.ckpt", weights_only=True)
    assert int(held["state_dict"]["served.done"].sum()) == [0, 8, 16, 21, 29, 37][steps]
    again = fork(tmp_path, *fit).wait()
    assert (again.code, again.err) == (0, "")
    same(folder, expected)
