"""A run that is killed and started again equals one that was never interrupted."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import fork, one_run, until
from interrupted import FIT, at_step, before, same

from dafw.checkpoints import checkpoints


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_saving(step: int) -> Callable[[], None]:
    """The process is killed as soon as the checkpoint of ``step`` is there."""

    def setup() -> None:
        from dafw.callbacks import Checkpointing

        save = Checkpointing.save

        def save_and_die(self: Any, trainer: Any, method: Any) -> None:
            save(self, trainer, method)
            if method.steps_done == step:
                die()

        Checkpointing.save = save_and_die  # type: ignore[method-assign]

    return setup


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 6, 8, 11, 12])
def test_right_after_a_checkpoint(tmp_path: Path, uninterrupted: Path, step: int) -> None:
    """Steps 4, 8 and 12 end an epoch: their validation must neither be lost nor be made twice."""
    fit = (*FIT, "--run.checkpoint_every", step)
    assert fork(tmp_path, *fit, setup=kill_after_saving(step)).wait().code == -signal.SIGKILL
    assert checkpoints(one_run(tmp_path / "runs") / "checkpoints")[0].name == f"step={step}.ckpt"
    again = fork(tmp_path, *fit).wait()
    assert (again.code, again.err) == (0, "")
    same(one_run(tmp_path / "runs"), uninterrupted)


def test_before_the_second_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    """What was written before any step is a checkpoint like the others; it goes when there is a later one."""
    assert fork(tmp_path, *FIT, setup=at_step(2, die)).wait().code == -signal.SIGKILL
    folder = one_run(tmp_path / "runs")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step=0.ckpt"]
    again = fork(tmp_path, *FIT).wait()
    assert (again.code, again.err) == (0, "")
    same(folder, uninterrupted)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step=12.ckpt"]


@pytest.mark.slow
def test_around_validations_within_an_epoch(tmp_path: Path) -> None:
    fit = (*FIT, "--run.checkpoint_every", 2, "--trainer.val_check_interval", 2)
    assert fork(tmp_path / "whole", *fit).wait().code == 0
    for step in (2, 4, 6):
        assert fork(tmp_path / "parts", *fit, setup=kill_after_saving(step)).wait().code == -signal.SIGKILL
    assert fork(tmp_path / "parts", *fit).wait().code == 0
    same(one_run(tmp_path / "parts" / "runs"), one_run(tmp_path / "whole" / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end", "on_test_start", "write_result"])
def test_outside_the_steps(tmp_path: Path, uninterrupted: Path, hook: str) -> None:
    fit = (*FIT, "--run.checkpoint_every", 4)
    assert fork(tmp_path, *fit, setup=before(hook, die)).wait().code == -signal.SIGKILL
    assert not list(tmp_path.glob("runs/*/result.json"))
    again = fork(tmp_path, *fit).wait()
    assert (again.code, again.err) == (0, "")
    same(one_run(tmp_path / "runs"), uninterrupted)


@pytest.mark.slow
def test_from_outside_and_again(tmp_path: Path) -> None:
    """Kills come from another process, at whatever instant they come."""
    fit = (*FIT, "--data.steps_per_epoch", 100, "--trainer.max_epochs", 4, "--run.checkpoint_every", 30)
    whole = fork(tmp_path / "whole", *fit)
    for least in (30, 150, 300):
        process = fork(tmp_path / "parts", *fit)
        saved = lambda least=least: any(  # noqa: E731
            int(path.stem.partition("=")[2]) >= least for path in tmp_path.glob("parts/runs/*/checkpoints/*.ckpt")
        )
        assert until(saved)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    again = fork(tmp_path / "parts", *fit).wait()
    assert (again.code, again.err, whole.wait().code) == (0, "", 0)
    same(one_run(tmp_path / "parts" / "runs"), one_run(tmp_path / "whole" / "runs"))


def test_two_at_once(tmp_path: Path) -> None:
    """The second leaves the first alone."""
    first = fork(tmp_path, *FIT, "--data.steps_per_epoch", 100000)
    assert until(lambda: bool(list(tmp_path.glob("runs/*/metrics.csv"))))
    second = fork(tmp_path, *FIT, "--data.steps_per_epoch", 100000).wait()
    folder = one_run(tmp_path / "runs").relative_to(tmp_path)
    assert (second.code, second.out, second.err) == (2, "", f"dafw: error: another process works on {folder}\n")
    assert first.poll() is None
    first.send(signal.SIGTERM)
    stopped = first.wait()
    assert stopped.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in stopped.err
