"""Files that several processes share: written in one step, and held by one process at a time.

A disk that is full, read-only or gone is one sentence that names the file.
"""

import errno
import fcntl
import glob
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from dafw.errors import UserError, causes, sentence

UNFINISHED = ".unfinished"
"""Ending of a file that is being written. A killed process leaves it behind."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, a full quota and a file that reached its size limit."""
ABANDONED = 3600.0
"""Age in seconds of an unfinished file that no process writes any more."""
LOST = (errno.EIO, errno.EROFS, errno.ESTALE)
"""Error numbers of a disk that fails, that became read-only, and that went away."""


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


# ---- errors of the disk


def trouble(error: BaseException) -> str:
    """What to say of an error that the operating system reported about a file. It is empty for any other error."""
    full = _full(error)
    if full is not None:
        return f"no space left on the disk{f' for {full.filename}' if full.filename else ''}"
    if not isinstance(error, OSError):
        return ""
    if str(error).startswith("Caught "):  # by a process that loads data
        return sentence(error)
    if error.filename is None and error.errno not in LOST:
        return ""
    if error.errno == errno.EEXIST:
        return f"{error.filename} is a file, and a folder is needed there"
    return f"{error.filename or 'a file'} cannot be read or written ({error.strerror})"


@contextmanager
def naming_files() -> Iterator[None]:
    """Turns an error of the operating system about a file into one sentence. Other errors pass.

    Raises:
        UserError: naming the file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = trouble(error)
        if said:
            raise UserError(said) from error
        raise


def _full(error: BaseException) -> OSError | None:
    """The operating system's error of a full disk. ``torch.save`` raises one of its own after it."""
    found = (cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno in FULL)
    return next(found, None)


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Gives an error of the operating system the name of the file that is written."""
    try:
        yield
    except Exception as error:
        found = _full(error) or error
        if isinstance(found, OSError) and found.errno is not None:
            raise OSError(found.errno, found.strerror, str(path)) from error
        raise


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


# ---- writing


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yields a file to write. It takes the place of ``path`` in one step at the end.

    If writing fails, ``path`` stays as it is. Several processes may write the same ``path``: the last one wins.

    Args:
        path: the file to write. Its folder is made.
        sync: wait until the disk has the content. Without it a power cut may leave an empty file.

    Raises:
        OSError: with the name of ``path``, if it is a folder, or if the disk is full or fails.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if sync:
        remove_abandoned(path.parent, f"{path.name}.")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    with _of(path):
        try:
            with unfinished.open("wb") as file:
                with suppress(OSError):  # a file system without such locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                if sync:
                    sync_to_disk(file)
            unfinished.replace(path)
            if sync:
                _sync_folder(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Looks whether :func:`replacing` could write a file, as far as that can be known before. Nothing is made.

    Raises:
        OSError: that with which the writing would end, naming the file or a folder above it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))


def append(path: Path, text: str, sync: bool = False) -> None:
    """Adds ``text`` as UTF-8 to the end of a file.

    Args:
        path: the file.
        text: what to add.
        sync: wait until the disk has all of the file.

    Raises:
        OSError: with the name of ``path``, if the disk is full or fails. Part of the text may be in the file then.
    """
    with _of(path), path.open("ab") as file:
        file.write(text.encode())
        if sync:
            sync_to_disk(file)


def sync_to_disk(file: BinaryIO) -> None:
    """Waits until the disk has everything that was written to ``file``."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in a folder, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, sync: bool = True) -> None:
    """Writes ``text`` as UTF-8, see :func:`replacing`."""
    with replacing(path, sync) as file:
        file.write(text.encode())


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Removes the files in ``folder`` that killed processes did not finish. Other processes may write there now.

    A file counts as abandoned after :data:`ABANDONED` seconds, if no process holds it. So a clock that jumps, or a disk
    that hangs, takes no file from a process that writes it.

    Args:
        folder: the folder.
        name: begin of the files' names; all files if it is empty.
    """
    for unfinished in folder.glob(f"{glob.escape(name)}*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - unfinished.lstat().st_mtime > ABANDONED and not _is_held(unfinished):
                unfinished.unlink()


def _is_held(path: Path) -> bool:
    """Whether another process, or this one, writes a file now; no where the file system has no locks."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Removes the files in ``folder`` that a killed process did not finish.

    Args:
        folder: the folder.
        name: of the file that was to be written; all files if it is empty. No other process may write them now.
    """
    for path in folder.glob(f"{glob.escape(name)}*{UNFINISHED}"):
        path.unlink(missing_ok=True)


# ---- one process at a time


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


@contextmanager
def locked_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Locks a folder itself while the block runs, where the file system can do that.

    Nobody can remove this lock while the folder stays, as they can remove a lock file.

    Yields:
        A check that the folder is still there. It raises :class:`UserError` if it was removed or replaced.

    Raises:
        Busy: if another process holds the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    _folders.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        _close(descriptor)
        raise Busy(f"another process holds {folder}") from error
    except OSError:  # a network file system may lock files alone
        pass
    place = folder.absolute()  # a method of the user's may change the working directory

    def check() -> None:
        try:
            there = os.path.samestat(place.stat(), os.fstat(descriptor))
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if not there:
            raise UserError(f"{folder} was removed while this process worked in it: the same command begins it anew")

    try:
        yield check
    finally:
        _close(descriptor)


_folders: set[int] = set()
"""Descriptors of the folders that this process holds."""


def _close(descriptor: int) -> None:
    if descriptor in _folders:  # not in a forked process
        _folders.remove(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """Closes what a forked process got of its parent, since it would hold the folder after the parent's death."""
    for descriptor in list(_folders):
        _close(descriptor)


os.register_at_fork(after_in_child=_let_go)
