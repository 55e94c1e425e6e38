"""One attempt at a run, and the process that makes attempts one after the other."""

import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal

from dafw.errors import UserError, sentence
from dafw.files import Busy, trouble
from dafw.run.pool import limit_threads

LOG = "log.txt"
FAILED = "failed.txt"
EXECUTE = "dafw.run.entry:execute"
"""What executes an order: a function of a configuration and the root of the run directories, by import path."""


@dataclass(frozen=True)
class Order:
    """One attempt at a run.

    Attributes:
        config: the complete configuration.
        directory: the run directory.
        root: folder of the run directories.
        attempt: number of the attempt, from 1.
    """

    config: dict[str, Any]
    directory: Path
    root: Path
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        status: "done" if the function returned, with or without a result; "busy" if another process makes the run.
        error: why it failed.
        retryable: whether a second attempt may end otherwise.
    """

    status: Literal["done", "busy", "failed"]
    error: str = ""
    retryable: bool = True


def load_function(path: str) -> Callable[[dict[str, Any], Path], Any]:
    """The function behind ``package.module:name``."""
    module, _, name = path.partition(":")
    function: Callable[[dict[str, Any], Path], Any] = getattr(importlib.import_module(module), name)
    return function


def attempt(execute: Callable[[dict[str, Any], Path], Any], order: Order) -> Outcome:
    """Executes an order. Everything that it prints goes to ``log.txt`` in the run directory.

    A mistake of the user (:class:`UserError`) and an error with ``retryable = False`` are not tried again, since a
    second attempt would end the same way. A log that cannot be written is such a mistake.
    """
    try:
        order.directory.mkdir(parents=True, exist_ok=True)
        with _printing_to(order.directory / LOG):
            return _outcome(execute, order)
    except OSError as error:
        return Outcome("failed", trouble(error) or sentence(error), retryable=False)


def _outcome(execute: Callable[[dict[str, Any], Path], Any], order: Order) -> Outcome:
    try:
        if order.attempt > 1:
            print(f"--- attempt {order.attempt} ---", flush=True)
        execute(order.config, order.root)
    except Busy:
        return Outcome("busy")
    except UserError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
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


def serve(pipe: connection.Connection, environment: dict[str, str], function: str) -> None:
    """Takes orders from the pipe and answers each with its outcome, until the pipe closes.

    Args:
        pipe: to the process that gives the orders.
        environment: of this process, which is set.
        function: what executes an order, by import path.
    """
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
                _answer(pipe, Outcome("failed", f"cannot load {function}: {error}", retryable=False))
                continue
        _answer(pipe, attempt(execute, order))


def _answer(pipe: connection.Connection, outcome: Outcome) -> None:
    """Sends an outcome. After a signal the other side listens no more, and the worker ends at its next order."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(outcome)


def _prepare(function: str, environment: dict[str, str]) -> Callable[[dict[str, Any], Path], Any]:
    execute = load_function(function)
    if function == EXECUTE:
        limit_threads(environment)
    return execute


def _clean() -> None:
    """Frees the memory of a finished run, since the next one needs it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Appends to a file all output of this process, of its native code and of its children."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a disk that is full of logs costs no run its result
                sys.stdout.flush()
                sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
