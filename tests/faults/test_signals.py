"""SIGTERM and Ctrl-C: the step and its validation are finished, saved, and the same command goes on from there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import fork, one_run
from interrupted import FIT, at_step, before, same

from dafw.checkpoints import checkpoints

BOTH = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)


def send(*signums: int) -> Callable[[], None]:
    """Sends signals to the own process."""
    return lambda: [os.kill(os.getpid(), signum) for signum in signums] and None


def goes_on(folder: Path, uninterrupted: Path) -> None:
    """The same command ends as if nothing had happened."""
    again = fork(folder, *FIT).wait()
    assert (again.code, again.err) == (0, "")
    same(one_run(folder / "runs"), uninterrupted)


@BOTH
@pytest.mark.parametrize("step", [2, 4])
def test_in_a_step(tmp_path: Path, uninterrupted: Path, signum: signal.Signals, step: int) -> None:
    """Step 4 is the last of its epoch: its validation is made before the run stops."""
    stopped = fork(tmp_path, *FIT, setup=at_step(step, send(signum))).wait()
    assert stopped.code == 128 + signum
    assert stopped.err == f"dafw: stopped by {signum.name} at step {step}; the same command goes on from there\n"
    folder = one_run(tmp_path / "runs")
    assert [path.name for path in checkpoints(folder / "checkpoints")] == [f"step={step}.ckpt"]
    assert not (folder / "result.json").exists()
    goes_on(tmp_path, uninterrupted)


def test_gradients_that_wait_for_more_batches_are_not_lost(tmp_path: Path) -> None:
    """Two batches an update, five in an epoch: the run stops and saves between two updates."""
    fit = (*FIT, "--data.steps_per_epoch", 5, "--trainer.accumulate_grad_batches", 2, "--run.checkpoint_every", 3)
    assert fork(tmp_path / "whole", *fit).wait().code == 0
    for step, stops in ((1, 2), (8, 9)):
        stopped = fork(tmp_path / "parts", *fit, setup=at_step(step, send(signal.SIGTERM))).wait()
        assert f"at step {stops};" in stopped.err
    assert fork(tmp_path / "parts", *fit).wait().code == 0
    parts = one_run(tmp_path / "parts" / "runs")
    same(parts, one_run(tmp_path / "whole" / "runs"))
    assert [path.name for path in checkpoints(parts / "checkpoints")] == ["step=15.ckpt", "step=12.ckpt"]


@BOTH
@pytest.mark.parametrize("epoch", [1, 3])
def test_in_a_validation(tmp_path: Path, uninterrupted: Path, signum: signal.Signals, epoch: int) -> None:
    stopped = fork(tmp_path, *FIT, setup=before("on_validation_start", send(signum), number=epoch)).wait()
    assert stopped.code == 128 + signum
    assert f"stopped by {signum.name} at step {4 * epoch};" in stopped.err
    goes_on(tmp_path, uninterrupted)


@BOTH
def test_in_the_test(tmp_path: Path, uninterrupted: Path, signum: signal.Signals) -> None:
    stopped = fork(tmp_path, *FIT, setup=before("test_step", send(signum))).wait()
    assert stopped.code == 128 + signum
    assert f"stopped by {signum.name} at step 12;" in stopped.err
    goes_on(tmp_path, uninterrupted)


def test_before_the_first_step(tmp_path: Path, uninterrupted: Path) -> None:
    stopped = fork(tmp_path, *FIT, setup=before("train_dataloader", send(signal.SIGTERM))).wait()
    assert stopped.code in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert not list(tmp_path.glob("runs/*/result.json"))
    goes_on(tmp_path, uninterrupted)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_second_one_acts_at_once(tmp_path: Path, uninterrupted: Path, signum: signal.Signals) -> None:
    stopped = fork(tmp_path, *FIT, setup=at_step(2, send(signum, signum))).wait()
    assert stopped.code == (-signum if signum == signal.SIGTERM else 128 + signum)
    assert [path.name for path in tmp_path.glob("runs/*/checkpoints/*")] == ["step=0.ckpt"]
    goes_on(tmp_path, uninterrupted)


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_in_an_evaluation(tmp_path: Path, uninterrupted: Path, command: str) -> None:
    (checkpoint,) = (uninterrupted / "checkpoints").glob("step=12.ckpt")
    hook = {"test": "test_step", "validate": "validation_step", "predict": "predict_step"}[command]
    arguments = (command, *FIT[1:], "--ckpt_path", checkpoint)
    stopped = fork(tmp_path, *arguments, setup=before(hook, send(signal.SIGTERM))).wait()
    assert (stopped.code, stopped.out) == (128 + signal.SIGTERM, "")
    assert stopped.err.startswith("dafw: stopped by SIGTERM")
    assert stopped.err.count("\n") == 1
