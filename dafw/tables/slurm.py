"""Makes the runs of a table on a SLURM cluster, through submitit (the extra ``slurm``).

A job array has a task per run (or per ``chunk`` of runs). Runs that start from others are a second array, submitted
when the first is done. A task that is preempted or reaches its time limit saves a checkpoint, is put back into the
queue, and goes on from there. Leaving this program leaves the jobs running: the same
command, or ``dafw table show``, picks their results up.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

from dafw.errors import UserError, choose
from dafw.run.directory import is_running
from dafw.run.pool import signals
from dafw.run.result import RESULT
from dafw.run.worker import EXECUTE, FAILED, Order, Outcome, attempt, last_line, load_function
from dafw.tables.grid import Table
from dafw.tables.launch import Job, Report, make_jobs, percent_text
from dafw.tables.progress import Reporter
from dafw.tables.queue import job_of, note_job, queue

CANCELLED = "dafw table cancel ended its job"
NATIVE = {
    "account": "slurm_account",
    "constraint": "slurm_constraint",
    "cpus": "slurm_cpus_per_task",
    "exclude": "slurm_exclude",
    "gpus": "slurm_gpus_per_node",
    "mem": "slurm_mem",
    "nodelist": "slurm_nodelist",
    "parallel": "slurm_array_parallelism",
    "partition": "slurm_partition",
    "qos": "slurm_qos",
    "setup": "slurm_setup",
    "warning": "slurm_signal_delay_s",
}
"""By key of ``--slurm``, its name in submitit."""
OPTIONS = (*NATIVE, "time", "chunk", "requeues", "cluster")
QUEUE_POLL = 15.0
"""Seconds between two questions to SLURM about its queue, which many users ask."""
LARGEST_ARRAY = 1000
"""SLURM's default ``MaxArraySize`` is 1001."""


@dataclass(frozen=True)
class Cluster:
    """How to submit.

    Attributes:
        parameters: what submitit's executor is given.
        name: submitit's kind of cluster: ``slurm``, or ``local`` for processes of this machine.
        chunk: runs per array task.
        requeues: how often a task may reach its time limit and go on.
    """

    parameters: dict[str, Any]
    name: str = "slurm"
    chunk: int = 1
    requeues: int = 20


def parse_cluster(settings: Sequence[str]) -> Cluster:
    """``["partition=gpu", "time=4:00:00", "gpus=1", "chunk=2"]`` as a :class:`Cluster`.

    Raises:
        UserError: for an unknown key or a value that does not fit it.
    """
    given: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise UserError(f'--slurm takes key=value, as in partition=gpu, not "{setting}"')
        given[choose("key of --slurm", key, OPTIONS)] = value
    parameters: dict[str, Any] = {"timeout_min": _minutes(given.get("time", "60"))}
    for key, text in given.items():
        if key in NATIVE:
            whole = _whole(key, text) if key in ("cpus", "parallel", "warning") else text
            parameters[NATIVE[key]] = [text] if key == "setup" else whole
    name = choose("cluster", given.get("cluster", "slurm"), ("slurm", "local"))
    return Cluster(parameters, name, **{key: _whole(key, given[key]) for key in ("chunk", "requeues") if key in given})


def _whole(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'--slurm {key} is a whole number from 1, not "{text}"')
    return int(text)


def _minutes(text: str) -> int:
    """Minutes in ``90``, ``90:00`` (minutes and seconds), ``4:00:00`` (hours) or ``1-12:00:00`` (days)."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)|(\d+)", text)
    if match is None:
        raise UserError(f'--slurm time is minutes, or as in 4:00:00 or 1-12:00:00, not "{text}"')
    days, hours, minutes, seconds, alone = (int(part or 0) for part in match.groups())
    total = days * 1440 + hours * 60 + minutes + alone + (1 if seconds else 0)
    if total < 1:
        raise UserError(f'--slurm time is at least a minute, not "{text}"')
    return total


class Chunk:
    """Makes the runs of an array task one after the other. If it is stopped, submitit puts it back into the queue.

    Args:
        orders: the runs.
        function: what executes a run, by import path.
    """

    def __init__(self, orders: list[Order], function: str) -> None:
        self.orders, self.function = orders, function

    def __call__(self) -> dict[str, Outcome]:
        """Makes the runs that are not done.

        Returns:
            The outcome of every attempt, by the name of its run directory.
        """
        warning = Warned()
        execute = load_function(self.function)
        outcomes = {}
        for order in self.orders:
            if not (order.directory / RESULT).exists():
                with warning:
                    outcome = attempt(execute, order)
                warning.hand_over()
                outcomes[order.directory.name] = outcome
        return outcomes

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same runs, which go on from their checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Warned:
    """Turns submitit's signal (preemption, time limit) into SIGTERM, on which a run saves a checkpoint and ends.

    Afterwards :meth:`hand_over` lets submitit's own handler put the task back into the queue. A run that does not
    handle SIGTERM yet has nothing to save, and is left at once.
    """

    def __init__(self) -> None:
        self.signum = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
        self.theirs = signal.getsignal(self.signum)
        self.sigterm = signal.getsignal(signal.SIGTERM)
        self.came = False

    def __enter__(self) -> None:
        if callable(self.theirs):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, but the run must see it
            signal.signal(self.signum, self._pass_on)

    def __exit__(self, *_: object) -> None:
        if callable(self.theirs):
            signal.signal(signal.SIGTERM, self.sigterm)
            signal.signal(self.signum, self.theirs)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        if not self.came:
            self.came = True
            if not callable(signal.getsignal(signal.SIGTERM)):
                raise SystemExit("stopped before training: nothing to save")
            signal.raise_signal(signal.SIGTERM)

    def hand_over(self) -> None:
        """Calls submitit's handler if its signal came. The handler does not return."""
        if self.came and callable(self.theirs):
            self.theirs(self.signum, None)


def submit_table(
    table: Table,
    root: Path,
    reporter: Reporter,
    cluster: Cluster,
    *,
    function: str = EXECUTE,
    poll: float | None = None,
) -> Report:
    """Submits every run of the table that is not done, waits for all, and submits failed runs once more.

    Runs that start from others follow when those are done.

    Ctrl-C and SIGTERM end the waiting, not the jobs.

    Raises:
        UserError: if submitit is not installed, or the cluster refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError('the launcher "slurm" needs submitit: pip install "dafw[slurm]"') from error
    root = root.resolve()
    jobs = make_jobs(table, root)
    pending = [job for job in jobs if job.result(table.metric) is None]
    report = Report(total=len(jobs), skipped=len(jobs) - len(pending))
    reporter.begin(report.total, report.skipped)
    # A folder of its own: what is left of jobs that were refused is not another command's.
    folder = root / "tables" / table.folder / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster.name, slurm_max_num_timeout=cluster.requeues)
        executor.update_parameters(name=f"dafw-{table.folder}", **cluster.parameters)
        with signals() as stop:
            while pending and not report.interrupted:
                ready = [job for job in pending if job.ready]
                submission = Submission(executor, ready, root, table.metric, cluster, function)
                later = [job for job in pending if not job.ready]
                pending = submission.wait(reporter, report, poll or QUEUE_POLL, stop)
                report.unsubmitted = len(later) if report.interrupted else 0
                pending += drop(later, reporter, report)
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"the cluster did not take the jobs: {last_line(str(error))}") from error
    finally:
        _remove_unsubmitted(folder)
        reporter.close()
    return report


def _remove_unsubmitted(folder: Path) -> None:
    """Removes what submitit wrote for jobs that the cluster did not take, and the folder if nothing else is in it.

    It names what it writes by random numbers, and renames it after the job as soon as there is one. Of a script it
    leaves a link under the old name.
    """
    for path in [*folder.glob("*.pkl"), *folder.glob(".submission_file_*.sh")]:
        if not path.is_symlink() and re.fullmatch(r"(\.submission_file_)?[0-9a-f]{32}\.(pkl|sh)", path.name):
            path.unlink(missing_ok=True)
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()


def drop(jobs: list[Job], reporter: Reporter, report: Report) -> list[Job]:
    """Fails the jobs that start from a job that failed for good. Returns the other jobs."""
    while lost := [job for job in jobs if job.fails_with()]:
        for job in lost:
            job.fail(job.fails_with(), retryable=False)
            report.failed.append(job)
            reporter.failed(job.cell.line, job.error, str(job.log), False)
        jobs = [job for job in jobs if job not in lost]
    return jobs


class Submission:
    """One job array, and the runs of each task.

    Args:
        executor: submitit's.
        jobs: the runs to make.
        root: folder of the run directories.
        metric: the table's.
        cluster: how to submit.
        function: what executes a run, by import path.
    """

    def __init__(
        self, executor: Any, jobs: list[Job], root: Path, metric: str, cluster: Cluster, function: str
    ) -> None:
        self.metric, self.cluster = metric, cluster
        for job in jobs:
            job.prepare(metric)
        orders = [Order(job.cell.config, job.directory, root, job.attempts) for job in jobs]
        size = max(cluster.chunk, -(-len(jobs) // LARGEST_ARRAY))
        starts = range(0, len(jobs), size)
        with executor.batch():
            tasks = [executor.submit(Chunk(orders[start : start + size], function)) for start in starts]
        self.waiting = {id(job): (job, tasks[number // size]) for number, job in enumerate(jobs)}
        for job, task in self.waiting.values():
            note_job(job.directory, task.job_id)

    def wait(self, reporter: Reporter, report: Report, poll: float, stop: int) -> list[Job]:
        """Waits until every run has ended or a signal comes. Returns the runs to submit once more."""
        again: list[Job] = []
        gone: set[str] = set()
        started = time.monotonic()
        while self.waiting:
            queued = self._queued()
            for job, task in list(self.waiting.values()):
                percent = job.result(self.metric)
                if percent is not None:
                    report.made += 1
                    (job.directory / FAILED).unlink(missing_ok=True)
                    reporter.ended(job.cell.line, percent_text(percent), time.monotonic() - started)
                elif task.job_id in gone and not is_running(job.directory):
                    self._fail(job, task, reporter, report, again)
                else:
                    continue
                del self.waiting[id(job)]
            # Its result may reach this machine after it left the queue, so it is looked at once more.
            gone = {task.job_id for _, task in self.waiting.values() if self._ended(task, queued)}
            if self.waiting and connection.wait([stop], poll):
                report.interrupted = True
                return []
        return again

    def _queued(self) -> set[str] | None:
        """The array tasks in SLURM's queue; ``None`` if it cannot be asked."""
        if self.cluster.name != "slurm":
            return None
        jobs = queue()
        return None if jobs is None else set(jobs)

    def _ended(self, task: Any, queued: set[str] | None) -> bool:
        return task.job_id not in queued if queued is not None else self.cluster.name != "slurm" and task.done()

    def _fail(self, job: Job, task: Any, reporter: Reporter, report: Report, again: list[Job]) -> None:
        cancelled = not job_of(job.directory)
        outcome = Outcome("failed", CANCELLED, retryable=False) if cancelled else self._outcome(job, task)
        once_more = job.fail(outcome.error or job.trouble(self.metric), outcome.retryable)
        (again if once_more else report.failed).append(job)
        reporter.failed(job.cell.line, job.error, str(job.log), once_more)

    def _outcome(self, job: Job, task: Any) -> Outcome:
        if not task.paths.result_pickle.exists():
            return Outcome("failed", f"the job {task.job_id} died, see {task.paths.stderr}")
        try:
            outcomes: dict[str, Outcome] = task.result()
        except Exception as error:  # submitit raises the error of the job as text
            return Outcome("failed", f"the job {task.job_id} failed: {last_line(str(error))}")
        return outcomes.get(job.directory.name, Outcome("failed"))
