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


def user_path(given: str | Path) -> Path:
    """A path that a user gave. ``~`` at its start is the home folder.

    Raises:
        UserError: if it begins with the name of a user without a home folder.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UserError(f"{given} begins with a home folder that is not known: write the folder out") from error


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
