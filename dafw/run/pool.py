"""Processes that work side by side, each with its own GPU or its own core. Nothing here imports torch."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from dafw.run.devices import visible_gpus, worker_environment

GRACE = 120.0
"""Seconds that workers have after SIGTERM to save a checkpoint."""
POLL = 5.0
"""Seconds between two looks at a run that another process makes."""


@dataclass(eq=False)
class Worker:
    """A process of the pool.

    Attributes:
        number: from 0. It decides which GPU the process has.
        process: the process.
        pipe: our end of the pipe to it.
    """

    number: int
    process: SpawnProcess
    pipe: connection.Connection


@dataclass(frozen=True)
class Ready:
    """What happened in the pool.

    Attributes:
        stopped: whether a signal came.
        messages: workers that sent something, with what they sent.
        ended: workers that ended. All that they sent was received before.
    """

    stopped: bool = False
    messages: list[tuple[Worker, Any]] = field(default_factory=list)
    ended: list[Worker] = field(default_factory=list)


class ProcessPool:
    """Starts processes, waits for them, replaces them and ends them.

    Args:
        main: what a process does, a function of its end of the pipe, of its environment and of ``arguments``.
        arguments: further arguments of ``main``.
        count: number of processes at most.
        stop: a file descriptor that becomes readable when a signal comes, see :func:`signals`.
        grace: seconds that processes have after SIGTERM.
        devices: GPUs that each of them takes, if there are any.
    """

    def __init__(
        self,
        main: Callable[..., Any],
        arguments: tuple[Any, ...],
        count: int,
        stop: int,
        grace: float = GRACE,
        devices: int = 1,
    ) -> None:
        self.main, self.arguments, self.stop, self.grace = main, arguments, stop, grace
        gpus = visible_gpus()
        self.environments = [worker_environment(number, count, gpus, devices) for number in range(count)]
        self.workers: list[Worker] = []

    @property
    def full(self) -> bool:
        """Whether there are as many processes as there may be."""
        return len(self.workers) >= len(self.environments)

    def start(self) -> Worker:
        """Starts the process with the lowest free number."""
        taken = {worker.number for worker in self.workers}
        number = next(number for number in range(len(self.environments)) if number not in taken)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.main, theirs, self.environments[number], self.arguments))
        process.start()
        theirs.close()
        self.workers.append(Worker(number, process, ours))
        return self.workers[-1]

    def wait(self, timeout: float | None = None) -> Ready:
        """Waits until a signal comes, a worker sends something, a worker ends, or ``timeout`` seconds are over."""
        watched: list[connection.Connection | int] = [self.stop]
        watched += [part for worker in self.workers for part in (worker.pipe, worker.process.sentinel)]
        ready = connection.wait(watched, timeout)
        if self.stop in ready:
            return Ready(stopped=True)
        found = Ready()
        for worker in self.workers:
            if worker.pipe in ready:
                try:
                    found.messages.append((worker, worker.pipe.recv()))
                except (EOFError, OSError):  # it ended, which closed its end of the pipe
                    found.ended.append(worker)
            elif worker.process.sentinel in ready:
                found.ended.append(worker)
        return found

    def remove(self, worker: Worker) -> int:
        """Takes a process that ended out of the pool, and returns its exit code, negative after a signal."""
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        return worker.process.exitcode or 0

    def close(self, idle: Collection[Worker] = ()) -> None:
        """Ends the processes: SIGTERM, the grace period, a kill. A further signal cuts the grace period short.

        Args:
            idle: workers that end by themselves when their pipe is closed. They get no SIGTERM.
        """
        for worker in self.workers:
            worker.pipe.close()
            if worker not in idle:
                worker.process.terminate()
        with contextlib.suppress(BlockingIOError):
            os.read(self.stop, 4096)
        deadline = time.monotonic() + self.grace
        alive = [worker.process for worker in self.workers]
        while alive and (left := deadline - time.monotonic()) > 0:
            ready = connection.wait([self.stop, *(process.sentinel for process in alive)], left)
            if self.stop in ready:
                break
            alive = [process for process in alive if process.sentinel not in ready]
        for process in alive:
            process.kill()
        for worker in self.workers:
            worker.process.join()
        self.workers = []


def _serve(
    main: Callable[..., Any], pipe: connection.Connection, environment: dict[str, str], arguments: tuple[Any, ...]
) -> None:
    """What a new process does. The environment is set before anything imports torch.

    A worker leads its own process group, so Ctrl-C reaches the parent alone, which passes it on as SIGTERM. If the
    parent dies, the worker sends itself SIGTERM.
    """
    os.environ.update(environment)
    with contextlib.suppress(OSError):  # it leads one already
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(file=2)
    threading.Thread(target=_follow_parent, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main(pipe, environment, *arguments)


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def limit_threads(environment: dict[str, str]) -> None:
    """Gives torch the number of threads that the environment names."""
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))


@contextlib.contextmanager
def signals() -> Iterator[int]:
    """Yields a file descriptor that becomes readable on SIGINT or SIGTERM. They do nothing else meanwhile.

    Outside the main thread signals stay as they are.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)

    def note(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(write, b"x")

    ours = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {signum: signal.signal(signum, note) for signum in ours}
    try:
        yield read
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        os.close(read)
        os.close(write)
