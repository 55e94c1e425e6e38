"""Makes the runs of a table on this machine, with a pool of worker processes.

A run that is done is skipped. An interrupted run is resumed. A failed run is tried once more. If another process makes
a run, its result is read when it is done. A run that starts from another one waits for it, and fails if that fails.
Workers import torch once, and make one run after the other.
"""

import contextlib
import math
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from dafw.escape import terminal
from dafw.run.devices import default_workers, visible_gpus
from dafw.run.directory import run_directory
from dafw.run.pool import GRACE, POLL, ProcessPool, Worker, signals
from dafw.run.ranks import ranks_of
from dafw.run.result import RESULT, BrokenResult
from dafw.run.worker import EXECUTE, FAILED, LOG, Order, Outcome, last_words, serve
from dafw.tables.grid import Cell, Table
from dafw.tables.progress import Reporter
from dafw.tables.store import read_cell

ATTEMPTS = 2
"""Times that a run is tried."""
SLOWEST_POLL = 60.0
"""Seconds between two tries to take over a run that another process makes, at most."""


@dataclass(eq=False)
class Job:
    """One run directory to fill. Several cells of the table may read it.

    Attributes:
        cell: the first of these cells.
        directory: the run directory.
        attempts: number of attempts so far.
        error: why the last attempt failed.
        due: time from which a run of another process may be tried again.
        pause: seconds of the last wait for it.
        started: time at which the last attempt began.
        start: the job that it starts from.
        done: whether it has a number.
        dropped: whether it failed for good.
    """

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
        """The number of a finished run in percent, the mean over its targets; ``None`` if it has none.

        It is nan if a target has no labels, so that no run could have a number. Sets ``done``.
        """
        try:
            result = read_cell(self.directory, self.cell, metric)
        except BrokenResult:
            return None
        if result is not None and result.run.untested:
            self.done = True
            return math.nan
        scores = (result.scores("last") or {}) if result is not None else {}
        self.done = bool(scores)
        return 100 * sum(scores.values()) / len(scores) if scores else None

    def prepare(self, metric: str) -> None:
        """Counts an attempt. Renames a damaged ``result.json``, since its presence would mean that the run is done."""
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
        """Keeps the error, here and in the run directory. Returns whether the run is to be tried again."""
        self.error = error
        with contextlib.suppress(OSError):  # a disk that cannot be written may be the error
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / FAILED).write_text(f"{terminal(error)}\n", encoding="utf-8")
        self.dropped = not retryable or self.attempts >= ATTEMPTS
        return not self.dropped

    def fails_with(self) -> str:
        """Why the run cannot be made: the run that it starts from failed for good. Empty if that did not."""
        if self.start is None or not self.start.dropped:
            return ""
        return f"it starts from {self.start.cell.line}, which failed: {self.start.error}"


def percent_text(percent: float) -> str:
    """What is printed for the number of a run, see :meth:`Job.result`."""
    return "no number, since the target has no labels," if math.isnan(percent) else f"{percent:.2f} %"


@dataclass
class Report:
    """How a launch ended, in numbers of runs.

    Attributes:
        total: all runs of the table.
        skipped: runs that were done before.
        made: runs that this launch made.
        read: runs that another process made meanwhile.
        failed: runs without a number.
        interrupted: whether a signal ended the launch.
        unsubmitted: runs that were not submitted, since they start from runs that are not done.
    """

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
    poll: float = POLL,
    grace: float = GRACE,
) -> Report:
    """Makes every run of the table that is not done.

    Ctrl-C and SIGTERM end it: workers get SIGTERM, and save a checkpoint. A second signal or the end of the grace
    period kills them.

    Args:
        table: what to make.
        root: folder of the run directories.
        reporter: is told what happens.
        workers: number of processes. The default is one per GPU, or one per core, divided by the devices of a run.
        function: what executes a cell, see :data:`dafw.run.worker.EXECUTE`.
        poll: seconds between two looks at a run that another process makes.
        grace: seconds that workers get to save a checkpoint.
    """
    jobs = make_jobs(table, root)
    report = Report(total=len(jobs))
    pending = deque(job for job in jobs if job.result(table.metric) is None)
    report.skipped = len(jobs) - len(pending)
    reporter.begin(report.total, report.skipped)
    devices = max((ranks_of(job.cell.config) for job in pending), default=1)
    count = min(workers or default_workers(visible_gpus(), devices), len(pending))
    with signals() as stop:
        pool = ProcessPool(serve, (function,), count, stop, grace, devices)
        launch = Launch(pool, table.metric, root, reporter, report, pending, poll)
        try:
            launch.run()
        finally:
            pool.close(idle=[worker for worker in pool.workers if worker not in launch.jobs])
            reporter.close()
    return report


class Launch:
    """Hands runs to the workers, and reads what they and other processes made.

    Args:
        pool: the workers.
        metric: the table's.
        root: folder of the run directories.
        reporter: is told what happens.
        report: counts what happens.
        pending: the runs to make.
        poll: seconds between two looks at a run that another process makes.
    """

    def __init__(
        self,
        pool: ProcessPool,
        metric: str,
        root: Path,
        reporter: Reporter,
        report: Report,
        pending: deque[Job],
        poll: float,
    ) -> None:
        self.pool, self.metric, self.root = pool, metric, root
        self.reporter, self.report, self.pending, self.poll = reporter, report, pending, poll
        self.jobs: dict[Worker, Job] = {}
        self.elsewhere: list[Job] = []

    def run(self) -> None:
        """Returns when every run has ended one way or the other, or after a signal."""
        while self.pending or self.elsewhere or self.jobs:
            self._feed()
            if not (self.elsewhere or self.jobs):
                return
            ready = self.pool.wait(self.poll if self.elsewhere else None)
            if ready.stopped:
                self.report.interrupted = True
                return
            for worker, outcome in ready.messages:
                self._take(worker, outcome)
            for worker in ready.ended:
                self._replace(worker)
            self._look_elsewhere()

    def _feed(self) -> None:
        """Hands pending runs to idle workers. Starts workers as long as there are too few."""
        idle = [worker for worker in self.pool.workers if worker not in self.jobs]
        while idle or not self.pool.full:
            job = next((job for job in self.pending if job.ready), None)
            if job is None:
                return
            self.pending.remove(job)
            if self._read(job):  # another process made it in the meantime
                continue
            worker = idle.pop() if idle else self.pool.start()
            job.prepare(self.metric)
            self.jobs[worker] = job
            with contextlib.suppress(OSError):  # the pool notices a worker that died
                worker.pipe.send(Order(job.cell.config, job.directory, self.root, job.attempts))
            self.reporter.started(job.cell.line)

    def _take(self, worker: Worker, outcome: Outcome) -> None:
        """Takes a worker's answer."""
        job = self.jobs.pop(worker, None)
        if job is None:
            return
        if outcome.status == "busy":
            job.attempts -= 1
            job.pause = min(SLOWEST_POLL, 2 * job.pause or self.poll)
            job.due = time.monotonic() + job.pause
            self.elsewhere.append(job)
            self.reporter.waiting(job.cell.line)
        elif outcome.status == "failed":
            self._fail(job, outcome.error, outcome.retryable)
        elif (percent := job.result(self.metric)) is None:
            self._fail(job, job.trouble(self.metric))
        else:
            (job.directory / FAILED).unlink(missing_ok=True)
            self.report.made += 1
            self.reporter.ended(job.cell.line, percent_text(percent), time.monotonic() - job.started)

    def _replace(self, worker: Worker) -> None:
        """A worker died: its run counts as failed once, and another worker takes its place."""
        job, code = self.jobs.pop(worker, None), self.pool.remove(worker)
        if job is not None:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            self._fail(job, f"the worker died: {how}{memory}")

    def _fail(self, job: Job, error: str, retryable: bool = True) -> None:
        again = job.fail(error, retryable)
        (self.pending if again else self.report.failed).append(job)
        self.reporter.failed(job.cell.line, error, str(job.log), again)
        for other in [other for other in self.pending if other.fails_with()]:
            if other in self.pending:
                self.pending.remove(other)
                self._fail(other, other.fails_with(), retryable=False)

    def _look_elsewhere(self) -> None:
        """Reads what other processes finished. When nothing else is left, tries to take over their runs."""
        for job in list(self.elsewhere):
            if self._read(job):
                self.elsewhere.remove(job)
            elif not any(other.ready for other in self.pending) and time.monotonic() >= job.due:
                self.elsewhere.remove(job)
                self.pending.append(job)

    def _read(self, job: Job) -> bool:
        """Reads the result of a run if another process made it."""
        percent = job.result(self.metric)
        if percent is None:
            return False
        self.report.read += 1
        self.reporter.ended(job.cell.line, percent_text(percent), None)
        return True
