"""Files are written whole or not at all, and held by one process at a time."""

import multiprocessing
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dafw.files import UNFINISHED, Busy, hold, locked, remove_unfinished, replacing, write_atomically


def test_a_text_is_written_in_utf_8_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.txt"
    write_atomically(path, "mean ± std\r\n")
    assert path.read_bytes() == "mean ± std\r\n".encode()
    write_atomically(path, "again", sync=False)
    assert [one.name for one in path.parent.iterdir()] == ["x.txt"]
    assert path.read_text() == "again"


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "x", "")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        with replacing(tmp_path / "x") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{pid}{UNFINISHED}"]
    (tmp_path / "other").touch()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    remove_unfinished(tmp_path / "nowhere")


def keep(path: Path, pipe: Connection) -> None:
    """Holds the lock until it is killed."""
    lock = hold(path)
    pipe.send(lock.is_locked)
    signal.pause()


@contextmanager
def holder(path: Path) -> Iterator[multiprocessing.Process]:
    """Another process that holds the lock."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=keep, args=(path, theirs))
    process.start()
    assert ours.recv()
    try:
        yield process  # type: ignore[misc]
    finally:
        process.kill()
        process.join()


def test_a_lock_is_of_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with holder(path) as process:
        with pytest.raises(Busy, match="another process holds"):
            hold(path, wait=False)
        with pytest.raises(Busy), locked(path, wait=False):
            pytest.fail("it is held")
        process.kill()
        with locked(path):  # waits until the process is gone
            pass
    with locked(path, wait=False):
        pass


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    hold(tmp_path / "lock", wait=False).release()
