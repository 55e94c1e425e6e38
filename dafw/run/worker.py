"""The process that executes runs one after the other, and what one attempt at a run comes to."""

import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from dafw.errors import UserError
from dafw.files import Busy

LOG = "log.txt"
FAILED = "failed.txt"
EXECUTE = "dafw.run.entry:execute"
"""What executes a cell: a function of a configuration and the root of the run directories, by import path."""


@dataclass(frozen=True)
class Order:
    """One attempt at a cell, as sent to a worker."""

    config: dict[str, Any]
    directory: Path
    root: Path
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. ``done`` means the function returned: whether there is a result, the directory tells."""

    status: Literal["done", "busy", "failed"]
    error: str = ""
    retryable: bool = True


def load_function(path: str) -> Callable[[dict[str, Any], Path], Any]:
    """The function behind ``package.module:name``."""
    module, _, name = path.partition(":")
    function: Callable[[dict[str, Any], Path], Any] = getattr(importlib.import_module(module), name)
    return function


def attempt(execute: Callable[[dict[str, Any], Path], Any], order: Order) -> Outcome:
    """Executes a cell, with everything it prints going to ``log.txt`` in its directory.

    A mistake of the user (:class:`UserError`) is not retried, nor is an error that says ``retryable = False``: a second
    attempt would end the same way.
    """
    order.directory.mkdir(parents=True, exist_ok=True)
    with _printing_to(order.directory / LOG):
        try:
            if order.attempt > 1:
                print(f"--- attempt {order.attempt} ---", flush=True)
            execute(order.config, order.root)
        except Busy:
            return Outcome("busy")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return Outcome("failed", str(error), retryable=False)
        except BaseException as error:
            traceback.print_exc()
            said = last_line("".join(traceback.format_exception_only(error)))
            return Outcome("failed", said, retryable=getattr(error, "retryable", True))
        finally:
            _clean()
    return Outcome("done")


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def last_words(directory: Path) -> str:
    """The last line of a run's log, or that there is none."""
    try:
        with (directory / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return last_line(file.read().decode(errors="replace")) or "no output"
    except FileNotFoundError:
        return "no output"


def serve(pipe: connection.Connection, function: str, environment: dict[str, str]) -> None:
    """The worker's main loop: takes orders from the pipe and answers each with its outcome, until the pipe closes."""
    become_worker(environment)
    execute: Callable[[dict[str, Any], Path], Any] | None = None
    while True:
        try:
            order = pipe.recv()
        except (EOFError, OSError):
            return
        if execute is None:
            try:
                execute = _prepare(function, environment)
            except Exception as error:
                pipe.send(Outcome("failed", f"cannot load {function}: {error}", retryable=False))
                continue
        pipe.send(attempt(execute, order))


def _prepare(function: str, environment: dict[str, str]) -> Callable[[dict[str, Any], Path], Any]:
    execute = load_function(function)
    if function == EXECUTE:
        limit_threads(environment)
    return execute


def become_worker(environment: dict[str, str]) -> None:
    """What a worker does first.

    The environment is set before anything imports torch. A worker leads its own process group, so Ctrl-C reaches the
    parent alone, which passes it on as SIGTERM; if the parent dies, the worker sends itself SIGTERM.
    """
    os.environ.update(environment)
    with contextlib.suppress(OSError):  # it leads one already
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(file=2)
    threading.Thread(target=_follow_parent, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def limit_threads(environment: dict[str, str]) -> None:
    """Gives torch the threads that the environment names."""
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))


@contextlib.contextmanager
def signals() -> Iterator[int]:
    """A file descriptor that becomes readable on SIGINT or SIGTERM, which do nothing else meanwhile.

    Outside the main thread signals stay as they are.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)

    def note(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(write, b"x")

    ours = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    kept = {signum: signal.signal(signum, note) for signum in ours}
    try:
        yield read
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler)
        os.close(read)
        os.close(write)


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _clean() -> None:
    """Gives the memory of a finished run back, since the next one needs it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Sends standard output and error of the whole process, its native code and its children to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
