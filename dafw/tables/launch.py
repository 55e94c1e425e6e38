"""Making the runs of a table on this machine, with a pool of worker processes.

A run that is done is skipped, an interrupted one is resumed, a failed one is tried once more, and one that another
process works on is left to it and read when it is done. One that starts from another run waits until that one is done,
and fails with it. Workers import torch once and take one run after the other.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from dafw.run.devices import default_workers, visible_gpus, worker_environment
from dafw.run.directory import run_directory
from dafw.run.result import RESULT, BrokenResult
from dafw.run.worker import EXECUTE, FAILED, LOG, Order, Outcome, last_words, serve, signals
from dafw.tables.grid import Cell, Table
from dafw.tables.progress import Reporter
from dafw.tables.store import read_cell

ATTEMPTS = 2
SLOWEST_POLL = 60.0


@dataclass(eq=False)
class Job:
    """One run directory to fill, whichever cells of the table read it; ``start`` is the one it starts from."""

    cell: Cell
    directory: Path
    attempts: int = 0
    error: str = ""
    due: float = 0.0
    pause: float = 0.0
    started: float = 0.0
    start: "Job | None" = None
    done: bool = False
    dropped: bool = False

    @property
    def ready(self) -> bool:
        """Whether it can be made now."""
        return self.start is None or self.start.done

    @property
    def log(self) -> Path:
        """Where to read why it failed."""
        return self.start.log if self.start is not None and self.start.dropped else self.directory / LOG

    def result(self, metric: str) -> float | None:
        """The number in percent (mean over targets) of a finished run, None if there is none that can be used.

        Notes in ``done`` whether there is.
        """
        try:
            result = read_cell(self.directory, self.cell, metric)
        except BrokenResult:
            return None
        scores = (result.scores("last") or {}) if result is not None else {}
        self.done = bool(scores)
        return 100 * sum(scores.values()) / len(scores) if scores else None

    def prepare(self, metric: str) -> None:
        """Counts an attempt, and renames a damaged ``result.json``: its presence would mean that the run is done."""
        self.attempts += 1
        self.started = time.monotonic()
        try:
            read_cell(self.directory, self.cell, metric)
        except BrokenResult as error:
            if error.damaged:
                (self.directory / RESULT).replace(self.directory / "result.broken.json")

    def trouble(self, metric: str) -> str:
        """Why there is no number although the run ended."""
        try:
            read_cell(self.directory, self.cell, metric)
        except BrokenResult as error:
            return str(error)
        return f"ended without a result: {last_words(self.directory)}"

    def fail(self, error: str, retryable: bool) -> bool:
        """Remembers the error, here and in the run directory; whether the run deserves another attempt."""
        self.error = error
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / FAILED).write_text(f"{error}\n", encoding="utf-8")
        self.dropped = not retryable or self.attempts >= ATTEMPTS
        return not self.dropped

    def fails_with(self) -> str:
        """Why the run cannot be made, if the one it starts from failed for good; empty if it did not."""
        if self.start is None or not self.start.dropped:
            return ""
        return f"it starts from {self.start.cell.label}, which failed: {self.start.error}"


@dataclass
class Report:
    """What a launch came to."""

    total: int
    skipped: int = 0
    made: int = 0
    read: int = 0
    failed: list[Job] = field(default_factory=list)
    interrupted: bool = False
    unsubmitted: int = 0

    @property
    def exit_code(self) -> int:
        """0 if every run has a number, 1 if one has none, 130 if it was interrupted."""
        return 130 if self.interrupted else 1 if self.failed else 0


@dataclass
class Slot:
    """A worker and what it is at."""

    number: int
    process: SpawnProcess
    pipe: connection.Connection
    job: Job | None = None


def make_jobs(table: Table, root: Path) -> list[Job]:
    """A job for every run directory of the table, in the table's order."""
    jobs: dict[Path, Job] = {}
    for cell in table.runs():
        directory = run_directory(cell.config, root)
        jobs.setdefault(directory, Job(cell.placed(root), directory))
    for job in jobs.values():
        if job.cell.start is not None:
            job.start = jobs[run_directory(job.cell.start.config, root)]
    return list(jobs.values())


def run_table(
    table: Table,
    root: Path,
    reporter: Reporter,
    *,
    workers: int | None = None,
    function: str = EXECUTE,
    poll: float = 5.0,
    grace: float = 120.0,
) -> Report:
    """Makes every run of the table that is not done.

    Ctrl-C and SIGTERM end it: workers get SIGTERM, on which a run saves a checkpoint; a second one, or the end of the
    grace period, kills them.

    Args:
        table: what to make.
        root: folder of the run directories.
        reporter: is told what happens.
        workers: how many processes; by default one per GPU, or one per core.
        function: what executes a cell, see :data:`dafw.run.worker.EXECUTE`.
        poll: seconds between two looks at a run that another process makes.
        grace: seconds that workers get to save a checkpoint.
    """
    jobs = make_jobs(table, root)
    report = Report(total=len(jobs))
    pending = deque(job for job in jobs if job.result(table.metric) is None)
    report.skipped = len(jobs) - len(pending)
    reporter.begin(report.total, report.skipped)
    gpus = visible_gpus()
    count = min(workers or default_workers(gpus), len(pending))
    with signals() as stop:
        pool = Pool(table.metric, root, reporter, report, pending, function, poll, grace, stop)
        try:
            pool.run([worker_environment(i, count, gpus) for i in range(count)])
        finally:
            pool.close()
            reporter.close()
    return report


class Pool:
    """The workers, the queue, and the runs that others are making."""

    def __init__(
        self,
        metric: str,
        root: Path,
        reporter: Reporter,
        report: Report,
        pending: deque[Job],
        function: str,
        poll: float,
        grace: float,
        stop: int,
    ) -> None:
        self.metric, self.root, self.reporter, self.report, self.pending = metric, root, reporter, report, pending
        self.function, self.poll, self.grace, self.stop = function, poll, grace, stop
        self.slots: list[Slot] = []
        self.elsewhere: list[Job] = []

    def run(self, environments: list[dict[str, str]]) -> None:
        """Returns when every run has ended one way or the other, or after a signal."""
        while self.pending or self.elsewhere or any(slot.job for slot in self.slots):
            self._feed(environments)
            if not (self.elsewhere or any(slot.job for slot in self.slots)):
                return
            timeout = self.poll if self.elsewhere else None
            watched: list[connection.Connection | int] = [self.stop]
            watched += [part for slot in self.slots for part in (slot.pipe, slot.process.sentinel)]
            ready = connection.wait(watched, timeout)
            if self.stop in ready:
                self.report.interrupted = True
                return
            for slot in list(self.slots):
                if slot.pipe in ready:
                    self._listen(slot)
                elif slot.process.sentinel in ready:
                    self._bury(slot)
            self._look_elsewhere()

    def _feed(self, environments: list[dict[str, str]]) -> None:
        """Hands pending runs to idle workers, starting workers as long as there are too few."""
        idle = [slot for slot in self.slots if slot.job is None]
        while idle or len(self.slots) < len(environments):
            job = next((job for job in self.pending if job.ready), None)
            if job is None:
                return
            self.pending.remove(job)
            if self._read(job):  # another process made it in the meantime
                continue
            slot = idle.pop() if idle else self._start(environments)
            job.prepare(self.metric)
            slot.job = job
            with contextlib.suppress(OSError):  # a worker that died is noticed by its sentinel
                slot.pipe.send(Order(job.cell.config, job.directory, self.root, job.attempts))
            self.reporter.started(job.cell.label)

    def _start(self, environments: list[dict[str, str]]) -> Slot:
        """Starts the first worker that is not there: each number has its own GPU."""
        taken = {slot.number for slot in self.slots}
        number = next(number for number in range(len(environments)) if number not in taken)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.function, environments[number]))
        process.start()
        theirs.close()
        self.slots.append(Slot(number, process, ours))
        return self.slots[-1]

    def _listen(self, slot: Slot) -> None:
        """Takes a worker's answer."""
        try:
            outcome: Outcome = slot.pipe.recv()
        except (EOFError, OSError):
            self._bury(slot)
            return
        job, slot.job = slot.job, None
        if job is None:
            return
        if outcome.status == "busy":
            job.attempts -= 1
            job.pause = min(SLOWEST_POLL, 2 * job.pause or self.poll)
            job.due = time.monotonic() + job.pause
            self.elsewhere.append(job)
            self.reporter.waiting(job.cell.label)
        elif outcome.status == "failed":
            self._fail(job, outcome.error, outcome.retryable)
        elif (percent := job.result(self.metric)) is None:
            self._fail(job, job.trouble(self.metric))
        else:
            (job.directory / FAILED).unlink(missing_ok=True)
            self.report.made += 1
            self.reporter.ended(job.cell.label, f"{percent:.2f} %", time.monotonic() - job.started)

    def _bury(self, slot: Slot) -> None:
        """A worker died: its run counts as failed once, and another worker takes its place."""
        slot.process.join()
        slot.pipe.close()
        self.slots.remove(slot)
        job, code = slot.job, slot.process.exitcode or 0
        if job is not None:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            self._fail(job, f"the worker died: {how}{memory}")

    def _fail(self, job: Job, error: str, retryable: bool = True) -> None:
        again = job.fail(error, retryable)
        (self.pending if again else self.report.failed).append(job)
        self.reporter.failed(job.cell.label, error, str(job.log), again)
        for other in [other for other in self.pending if other.fails_with()]:
            if other in self.pending:
                self.pending.remove(other)
                self._fail(other, other.fails_with(), retryable=False)

    def _look_elsewhere(self) -> None:
        """Reads what other processes finished; takes over, when nothing else is left, what one of them dropped."""
        for job in list(self.elsewhere):
            if self._read(job):
                self.elsewhere.remove(job)
            elif not any(other.ready for other in self.pending) and time.monotonic() >= job.due:
                self.elsewhere.remove(job)
                self.pending.append(job)

    def _read(self, job: Job) -> bool:
        """Takes a result that another process made, if it is there."""
        percent = job.result(self.metric)
        if percent is None:
            return False
        self.report.read += 1
        self.reporter.ended(job.cell.label, f"{percent:.2f} %", None)
        return True

    def close(self) -> None:
        """Ends the workers: those at work get SIGTERM and the grace period, unless a second signal comes."""
        for slot in self.slots:
            slot.pipe.close()
            if slot.job is not None:
                slot.process.terminate()
        deadline = time.monotonic() + self.grace
        alive = [slot.process for slot in self.slots]
        with contextlib.suppress(BlockingIOError):
            os.read(self.stop, 4096)
        while alive and (left := deadline - time.monotonic()) > 0:
            ready = connection.wait([self.stop, *(process.sentinel for process in alive)], left)
            if self.stop in ready:
                break
            alive = [process for process in alive if process.sentinel not in ready]
        for process in alive:
            process.kill()
        for slot in self.slots:
            slot.process.join()
