"""A run over several ranks, made by a program of its own. Nothing here imports torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dafw.errors import UserError
from dafw.files import Busy
from dafw.run.directory import is_running

MISTAKE = 2
"""Exit code of a command for a mistake in its input."""
GRACE = 10.0
"""Seconds that the other ranks have to end after the first one failed."""


class RanksFailed(RuntimeError):
    """A run over several ranks ended without a result."""


def ranks_of(config: Mapping[str, Any]) -> int:
    """How many processes the configuration asks for on this machine. ``auto`` is one, as in a worker of a table.

    Raises:
        UserError: for several machines, which no cell of a table can have.
    """
    trainer = config.get("trainer") or {}
    if str(trainer.get("num_nodes", 1)) != "1":
        raise UserError("a run of a table has the devices of one machine: leave trainer.num_nodes out")
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdecimal() else 1


def fit_over_ranks(folder: Path, file: Path) -> None:
    """Makes or resumes the run by ``dafw fit``, whose first rank starts the others. Signals are passed on to it.

    SLURM's count of tasks is hidden from it, since its ranks are no tasks of SLURM.

    Args:
        folder: the run directory.
        file: the configuration.

    Raises:
        Busy: if another process makes the run.
        UserError: for a mistake in the configuration.
        SystemExit: if a signal ended the run, with the code of the command.
        RanksFailed: if it failed.
    """
    if is_running(folder):
        raise Busy(f"another process makes the run {folder}")
    environment = {key: value for key, value in os.environ.items() if key not in ("SLURM_NTASKS", "SLURM_NPROCS")}
    command = [sys.executable, "-m", "dafw", "fit", "--config", str(file)]
    with subprocess.Popen(command, env=environment, start_new_session=True) as ranks, _passing_on(ranks):
        code = ranks.wait()
    if code:
        _end(ranks.pid)
    if code == MISTAKE and is_running(folder):
        raise Busy(f"another process makes the run {folder}")
    if code == MISTAKE:
        raise UserError("the configuration has a mistake: the log says which")
    if code > 128 or code < 0:
        raise SystemExit(f"a signal ended the run: {signal.Signals(code - 128 if code > 0 else -code).name}")
    if code:
        raise RanksFailed(f"the run failed with exit code {code}: the log says why")


@contextmanager
def _passing_on(ranks: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Passes SIGTERM and SIGINT on to a program that has a session of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: ranks.send_signal(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(session: int) -> None:
    """Kills the ranks that outlive the first one: one that waits for it to answer would wait for half an hour."""
    deadline = time.monotonic() + GRACE
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(session, 0)
            time.sleep(0.1)
        os.killpg(session, signal.SIGKILL)
