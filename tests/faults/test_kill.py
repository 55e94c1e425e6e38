"""A run that is killed and started again equals one that was never interrupted."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import fork, one_run, until
from interrupted import FIT, at_step, before, die, same

from dafw.checkpoints import checkpoints
from dafw.files import UNFINISHED
from dafw.run.directory import LOCK


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


def in_the_middle_of(write: str, number: int = 1) -> Callable[[], None]:
    """The process is killed when it has written half of a file, or just before or after the file gets its name.

    Args:
        write: "half of", "before" or "after", and the name of the file.
        number: of the writes of this file, the one that is not finished.
    """
    when, _, name = write.rpartition(" ")

    def setup() -> None:
        from dafw.run import loggers

        replace, append, count = Path.replace, loggers.append, 0

        def counted(path: Path) -> bool:
            nonlocal count
            count += path.name == name
            return path.name == name and count == number

        def replace_or_die(self: Path, target: Path) -> Path:
            its_turn = counted(Path(target))
            if its_turn and when == "after":
                replace(self, target)
            if its_turn and when == "half of":
                os.truncate(self, self.stat().st_size // 2)
            if its_turn:
                die()
            return replace(self, target)

        def append_or_die(path: Path, text: str, sync: bool = False) -> None:
            half = bool(text) and when == "half of" and counted(path)
            append(path, text[: len(text) // 2] if half else text, sync)
            if half:
                die()

        Path.replace = replace_or_die  # type: ignore[assignment, method-assign]
        loggers.append = append_or_die

    return setup


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "number"),
    [
        ("half of step=8.ckpt", 1),
        ("before step=8.ckpt", 1),
        ("after step=8.ckpt", 1),
        ("half of step=0.ckpt", 1),
        ("half of metrics.csv", 2),
        ("half of metrics.csv", 5),
        ("after metrics.csv", 2),
        ("half of config.yaml", 1),
        ("half of result.json", 1),
        ("after result.json", 1),
    ],
)
def test_while_a_file_is_written(tmp_path: Path, uninterrupted: Path, write: str, number: int) -> None:
    fit = (*FIT, "--run.checkpoint_every", 2)
    assert fork(tmp_path, *fit, setup=in_the_middle_of(write, number)).wait().code == -signal.SIGKILL
    again = fork(tmp_path, *fit).wait()
    assert (again.code, again.err) == (0, "")
    folder = one_run(tmp_path / "runs")
    same(folder, uninterrupted)
    assert not list(folder.rglob(f"*{UNFINISHED}"))


def test_two_at_once(tmp_path: Path) -> None:
    """The second leaves the first alone, even if somebody removed the lock file."""
    first = fork(tmp_path, *FIT, "--data.steps_per_epoch", 100000)
    assert until(lambda: bool(list(tmp_path.glob("runs/*/metrics.csv"))))
    folder = one_run(tmp_path / "runs").relative_to(tmp_path)
    for _ in range(2):
        second = fork(tmp_path, *FIT, "--data.steps_per_epoch", 100000).wait()
        assert (second.code, second.out, second.err) == (2, "", f"dafw: error: another process works on {folder}\n")
        assert first.poll() is None
        (tmp_path / folder / LOCK).unlink()
    first.send(signal.SIGTERM)
    stopped = first.wait()
    assert stopped.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in stopped.err
