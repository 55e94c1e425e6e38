"""Files that several processes share: written in one step, and held by one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from dafw.errors import UserError

UNFINISHED = ".unfinished"
"""Ending of a file that is being written. A killed process leaves it behind."""


class Busy(UserError):
    """Another process holds the lock."""


@contextmanager
def reading(what: str, path: Path) -> Iterator[None]:
    """Within, an error of the file system ends in one sentence that names the file.

    Args:
        what: what is read, as in ``the image``.
        path: its file or folder.

    Raises:
        UserError: if the file system reports an error.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist") from error
    except OSError as error:
        if error.errno is None:  # a decoder's
            raise
        advice = "; give yourself the right to read it" if isinstance(error, PermissionError) else ""
        raise UserError(f"{what} {path} cannot be read: {os.strerror(error.errno)}{advice}") from error


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yields a file to write. It takes the place of ``path`` in one step at the end.

    If writing fails, ``path`` stays as it is. Several processes may write the same ``path``: the last one wins.

    Args:
        path: the file to write. Its folder is made.
        sync: wait until the disk has the content. Without it a power cut may leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            if sync:
                sync_to_disk(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_to_disk(file: BinaryIO) -> None:
    """Waits until the disk has everything that was written to ``file``."""
    file.flush()
    os.fsync(file.fileno())


def write_atomically(path: Path, text: str, sync: bool = True) -> None:
    """Writes ``text`` as UTF-8, see :func:`replacing`."""
    with replacing(path, sync) as file:
        file.write(text.encode())


def remove_unfinished(folder: Path) -> None:
    """Removes the files in ``folder`` that a killed process did not finish. No other process may write there."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def hold(path: Path, wait: bool = True) -> FileLock:
    """Takes the lock file ``path``. The operating system releases it when the process ends, however it ends.

    Args:
        path: the lock file. Its folder is made.
        wait: wait for the process that holds it.

    Returns:
        The lock, to be released with ``release()``.

    Raises:
        Busy: if another process holds it and ``wait`` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise Busy(f"another process holds {path}") from error
    return lock


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock file ``path`` while the block runs, see :func:`hold`."""
    lock = hold(path, wait)
    try:
        yield
    finally:
        lock.release()
