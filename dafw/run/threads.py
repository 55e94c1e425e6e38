"""The number of threads of a run. Another number changes rounding, so a run that goes on keeps its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dafw.errors import warn
from dafw.ranges import Range
from dafw.run.devices import default_workers

THREADS = Range("must be from 1 to 1024", 1, 1024)
"""What ``run.threads`` must be."""


@contextmanager
def kept_threads() -> Iterator[None]:
    """Gives the process back its number of threads after the block, for the next run that it makes."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settle_threads(given: int | None, began_with: int | None, ranks: int, on_machine: int) -> int:
    """Gives torch the number of threads of a run, and returns it.

    Args:
        given: ``run.threads``.
        began_with: the number in the checkpoint that the run goes on from. It wins over ``given``.
        ranks: number of processes that make the run.
        on_machine: number of them on this machine. They share its cores if nothing else is said.
    """
    if began_with is not None:
        number = began_with
    elif given is not None:
        number = given
    elif ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        number = max(1, default_workers([]) // on_machine)
    else:
        number = torch.get_num_threads()
    torch.set_num_threads(number)
    if ranks > 1:
        os.environ["OMP_NUM_THREADS"] = str(number)  # otherwise Lightning sets another number when it starts the ranks
    return number


def say_threads(given: int | None, before: int, number: int) -> None:
    """Says in one line that a run goes on with a number of threads that this process would not have taken.

    Args:
        given: ``run.threads``.
        before: the number that the process had.
        number: the number that the run began with.
    """
    if given is not None and given != number:
        warn(f"run.threads is {given}, but this run began with {number}, and goes on with {number}")
    elif given is None and before != number:
        print(f"goes on with {number} thread{'s' if number > 1 else ''}, as this run began")
