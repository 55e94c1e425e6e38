"""Host reads that a part cannot do without, such as the number of boxes that remain: they are declared and counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_declared: ContextVar[bool] = ContextVar("declared", default=False)


@contextmanager
def needed_reads() -> Iterator[None]:
    """Within, the host may read the device. The check of a step lists these reads apart from all others."""
    before = _declared.set(True)
    try:
        yield
    finally:
        _declared.reset(before)


def are_needed() -> bool:
    """Whether the code that asks is within :func:`needed_reads`."""
    return _declared.get()
