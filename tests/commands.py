"""Running ``dafw`` in tests: in this process, in a forked copy of it, in a fresh copy of a server, or in a new one."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from dafw.testing.server import run_fresh

CHECKOUT = Path(__file__).parents[1]
#: Data and network that are small, and that make a step of half a millisecond.
TOY_DATA = ("--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b", "--data.batch_size", "8")
PLAIN = ("--trainer.accelerator", "cpu", "--run.plots", "false")
TOY = (*TOY_DATA, "--model.network.backbone", "dafw.testing.toys.ToyNet", *PLAIN)
#: Toys of two sources, to go behind a model that is trained.
TWO_SOURCES = (*TOY_DATA, "--data.source", "[a, c]", "--data.batch_size", "4")
#: Two steps.
QUICK = (*TOY, "--trainer.max_epochs", "1", "--data.steps_per_epoch", "2")


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Runs a command in this process."""
    from dafw.cli import main

    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return Outcome(code, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command refuses what it was given."""
    before = set(Path().glob("runs/*"))
    code, out, err = call(capsys, *arguments)
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("dafw: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert set(Path().glob("runs/*")) == before, "something was left behind"
    return err.removeprefix("dafw: error: ").rstrip("\n")


def environment(**changes: str) -> dict[str, str]:
    """The variables of a new process: this checkout first on the path, one thread, no W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTEST_", "COV_"))}
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **changes}


def fresh(folder: Path, *arguments: object, timeout: float = 120, **variables: str) -> Outcome:
    """Runs a command in a process that has done nothing before: as :func:`run`, but all imports are made already."""
    changes = environment(**variables)
    (ended,) = run_fresh("commands:dafw", [*map(str, arguments)], variables=[changes], folder=folder, timeout=timeout)
    return Outcome(*ended)


def dafw(*arguments: str) -> int:
    """The command, in a fresh process."""
    from dafw.cli import main

    return main(arguments)


class Process:
    """A command in a process of its own; what it prints goes to two files in ``folder``."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder, self.code = pid, folder, None  # type: tuple[int, Path, int | None]

    @property
    def out(self) -> str:
        return (self.folder / f"{self.pid}.out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / f"{self.pid}.err").read_text()

    def poll(self) -> int | None:
        """Its exit code, negative after a signal; ``None`` while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, timeout: float = 60) -> Outcome:
        """Waits for its end; kills it and fails if that does not come."""
        if not until(lambda: self.poll() is not None, timeout):
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"it did not end within {timeout} s; it said:\n{self.out}\n{self.err}")
        assert self.code is not None
        return Outcome(self.code, self.out, self.err)

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)


def fork(folder: Path, *arguments: object, setup: Callable[[], None] = lambda: None, **variables: str) -> Process:
    """Runs a command in a copy of this process, which has imported everything already.

    Args:
        folder: its working directory.
        arguments: of ``dafw``.
        setup: called in the copy before the command.
        variables: environment variables of the copy.
    """
    import dafw.run.commands  # noqa: F401
    from dafw.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, folder)
    code = 70
    try:
        os.setsid()
        for number, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{os.getpid()}.{ending}", os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        logging.getLogger().handlers.clear()
        os.chdir(folder)
        os.environ.update({"WANDB_MODE": "disabled"} | variables)
        setup()
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def killed(act: Callable[[], object]) -> None:
    """Calls a function in a copy of this process, and asserts that it is killed within."""
    pid = os.fork()
    if not pid:
        try:
            act()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def killed_while_writing(name: str, act: Callable[[], object], half: bool = True) -> None:
    """As :func:`killed`, before a file that is written in one step gets its name.

    Args:
        name: of the file.
        act: the function that writes it.
        half: whether only half of the file was written by then.
    """

    def write() -> None:
        replace = Path.replace

        def replace_or_die(self: Path, target: Path) -> Path:
            if Path(target).name != name:
                return replace(self, target)
            if half:
                os.truncate(self, self.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        Path.replace = replace_or_die  # type: ignore[assignment, method-assign]
        act()

    killed(write)


def start(folder: Path, *command: object, **variables: str) -> subprocess.Popen[str]:
    """Starts a new process, whose output is read from its pipes."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Outcome:
    """Waits for the end of a process that :func:`start` started; kills its session if it does not come."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"it did not end within {timeout} s; it said:\n{out}\n{err}") from None
    return Outcome(process.returncode, out, err)


def run(folder: Path, *command: object, **variables: str) -> Outcome:
    """Runs a new process to its end."""
    return finish(start(folder, *command, **variables))


def until(condition: Callable[[], bool], timeout: float = 60) -> bool:
    """Waits until ``condition`` holds; says whether it came to hold."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def one_run(root: Path) -> Path:
    """The only run directory in ``root``."""
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return folder


def rows(text: str) -> Sequence[Mapping[str, str]]:
    """The rows of a CSV text."""
    import csv
    import io

    return list(csv.DictReader(io.StringIO(text)))
