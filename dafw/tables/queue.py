"""The jobs that a SLURM cluster has for the runs of a table: their ids, their states, and their end."""

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dafw.errors import UserError
from dafw.run.worker import last_line

JOB = "job.txt"
"""File in a run directory with the id of the job that makes the run."""
ASKED_AT_ONCE = 100
"""Jobs in one call of ``scancel``, since a command line has an end."""


@dataclass(frozen=True)
class Queued:
    """What SLURM says of a job.

    Attributes:
        state: as in ``RUNNING``, in small letters.
        place: the node it runs on, or why it waits.
    """

    state: str
    place: str

    def __str__(self) -> str:
        return f"{self.state} ({self.place.strip('()')})" if self.place.strip("()") else self.state


def queue() -> dict[str, Queued] | None:
    """The jobs of this user by id, one for each task of an array; ``None`` if SLURM cannot be asked."""
    command = ["squeue", "--me", "-h", "-r", "-o", "%i|%T|%R"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if listed.returncode:
        return None
    jobs = (line.split("|", 2) for line in listed.stdout.splitlines() if line.count("|") >= 2)
    return {number: Queued(state.lower(), place) for number, state, place in jobs}


def note_job(directory: Path, number: str) -> None:
    """Keeps the id of a run's job in its directory, where the other commands find it."""
    with contextlib.suppress(OSError):  # a disk that is full costs the id, not the run
        directory.mkdir(parents=True, exist_ok=True)
        (directory / JOB).write_text(f"{number}\n", encoding="utf-8")


def job_of(directory: Path) -> str:
    """The id of the run's job; empty if it has none."""
    try:
        return (directory / JOB).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def cancel(directories: Iterable[Path]) -> list[str]:
    """Cancels the jobs of these runs that are in the queue, so that no command submits them again.

    Returns:
        The ids of the jobs.

    Raises:
        UserError: if SLURM cannot be asked, or does not cancel them.
    """
    jobs = queue()
    if jobs is None:
        raise UserError("squeue does not answer here: cancel the jobs of a table where SLURM can be asked")
    noted = {directory: number for directory in directories if (number := job_of(directory)) in jobs}
    for directory in noted:  # before they end: a command that waits for them reads that they are not wanted
        (directory / JOB).unlink(missing_ok=True)
    numbers = sorted(set(noted.values()))
    for some in _parts(numbers):
        done = subprocess.run(["scancel", *some], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"SLURM does not cancel the jobs: {last_line(done.stderr)}")
    return numbers


def _parts(numbers: list[str]) -> Iterator[list[str]]:
    return (numbers[start : start + ASKED_AT_ONCE] for start in range(0, len(numbers), ASKED_AT_ONCE))
