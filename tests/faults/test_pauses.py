"""A clock that jumps, and a disk or a process that pauses: a run ends with the same bits."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from commands import fork, one_run
from interrupted import FIT, at_step, same

import dafw.files

YEAR = 365 * 86400.0


def jump(seconds: float) -> Callable[[], None]:
    """From now on the clock of this process shows another time. What counts seconds, ``time.monotonic``, goes on."""

    def act() -> None:
        clock = time.time
        time.time = lambda: clock() + seconds

    return act


def test_a_clock_that_jumps(tmp_path: Path, uninterrupted: Path) -> None:
    """A year ahead, and two years back; then the run is killed, with files of another year, and goes on."""

    def back() -> None:
        jump(-2 * YEAR)()
        for path in Path("runs").rglob("*.ckpt"):
            os.utime(path, (time.time(), time.time()))

    def setup() -> None:
        for step, act in ((3, jump(YEAR)), (7, back), (9, lambda: os.kill(os.getpid(), signal.SIGKILL))):
            at_step(step, act)()

    fit = (*FIT, "--run.checkpoint_every", 4)
    assert fork(tmp_path, *fit, setup=setup).wait().code == -signal.SIGKILL
    names = sorted(path.name for path in (one_run(tmp_path / "runs") / "checkpoints").glob("*.ckpt"))
    assert names == ["step=4.ckpt", "step=8.ckpt"]
    done = fork(tmp_path, *fit).wait()
    assert done.code == 0, done
    assert "resuming from step 8" in done.out
    same(one_run(tmp_path / "runs"), uninterrupted)


def test_a_disk_that_hangs(tmp_path: Path, uninterrupted: Path) -> None:
    """As a network file system does while its server restarts: each write to the disk takes a while."""

    def setup() -> None:
        sync = dafw.files.sync_to_disk

        def hang(file: object) -> None:
            time.sleep(0.05)
            sync(file)  # type: ignore[arg-type]

        dafw.files.sync_to_disk = hang  # type: ignore[assignment]

    assert fork(tmp_path, *FIT, "--run.checkpoint_every", 4, setup=setup).wait().code == 0
    same(one_run(tmp_path / "runs"), uninterrupted)


def test_a_process_that_is_stopped_for_a_while(tmp_path: Path, uninterrupted: Path) -> None:
    """A machine that sleeps stops it between two steps."""
    process = fork(tmp_path, *FIT, setup=at_step(7, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait().code == 0
    same(one_run(tmp_path / "runs"), uninterrupted)
