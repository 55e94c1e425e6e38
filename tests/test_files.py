"""Files are written whole or not at all, and held by one process at a time."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dafw.errors import UserError
from dafw.files import (
    UNFINISHED,
    Busy,
    append,
    hold,
    locked,
    locked_folder,
    naming_files,
    remove_abandoned,
    remove_unfinished,
    replacing,
    trouble,
    write_atomically,
)


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
    remove_unfinished(tmp_path, "y")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    remove_unfinished(tmp_path / "nowhere")


def test_what_a_killed_process_left_long_ago_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f"{name}{UNFINISHED}" for name in ("x.1", "x.2", "y.3"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    write_atomically(tmp_path / "x", "")
    assert {path.name for path in tmp_path.iterdir()} == {"x", new.name, other.name}


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


def test_a_clock_that_jumps_takes_no_file_from_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as file:
        (unfinished,) = tmp_path.glob(f"*{UNFINISHED}")
        os.utime(unfinished, (0, 0))  # as if decades had passed
        remove_abandoned(tmp_path)
        write_atomically(tmp_path / "b.txt", "another")
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    left = tmp_path / f"a.txt.1{UNFINISHED}"
    left.touch()
    os.utime(left, (0, 0))
    remove_abandoned(tmp_path)
    assert not left.exists()


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


# ---- errors of the disk


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file of this process may be larger than 4096 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, "old")
    for write in (write_atomically, append):
        with pytest.raises(UserError, match=rf"^no space left on the disk for {path}$"), naming_files():
            write(path, "new" * 4000)
    assert path.read_text()[:3] == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("mib", [0.01, 3])
def test_torch_on_a_full_disk(tmp_path: Path, mib: float) -> None:
    """torch raises an error of its own while it closes the file."""
    import torch

    path = tmp_path / "x"
    with pytest.raises(OSError, match=f"{path}") as raised, replacing(path) as file:
        torch.save([torch.zeros(int(mib * 2**18)) for _ in range(3)], file)
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    attempts = {
        "Not a directory": lambda: write_atomically(tmp_path / "file" / "x" / "y", ""),
        "Is a directory": lambda: write_atomically(tmp_path, ""),
        "File name too long": lambda: write_atomically(tmp_path / ("x" * 300), ""),
        "No such file or directory": lambda: append(tmp_path / "none" / "x", ""),
    }
    for reason, attempt in attempts.items():
        with pytest.raises(UserError, match=rf"^{tmp_path}\S* cannot be read or written \({reason}\)$"), naming_files():
            attempt()
    with pytest.raises(UserError, match=f"^{tmp_path}/file is a file, and a folder is needed there$"), naming_files():
        write_atomically(tmp_path / "file" / "x", "")
    assert trouble(OSError(errno.EIO, "Input/output error")) == "a file cannot be read or written (Input/output error)"
    said = 'Caught OSError in DataLoader worker process 0.\nTraceback\nOSError: [Errno 5] Input/output error: "x"'
    assert trouble(OSError(said)) == '[Errno 5] Input/output error: "x"'


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), RuntimeError("x"), OSError("cannot identify")])
def test_an_error_that_is_of_no_file_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, naming_files():
        raise error
    assert raised.value is error


# ---- a folder as a lock


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    with locked_folder(tmp_path) as check:
        check()
        with pytest.raises(Busy), locked_folder(tmp_path):
            pytest.fail("it is held")
    with locked_folder(tmp_path):
        pass


def test_a_forked_process_does_not_hold_the_folder(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    with locked_folder(tmp_path):
        process = context.Process(target=lambda: (theirs.send("started"), theirs.recv()))
        process.start()
        assert ours.recv() == "started"
    with locked_folder(tmp_path):
        assert process.is_alive()
    ours.send("end")
    process.join()


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_was_removed_is_noticed(tmp_path: Path, again: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with locked_folder(folder) as check:
        shutil.rmtree(folder)
        if again:
            folder.mkdir()
        with pytest.raises(UserError, match=f"{folder} was removed while this process worked in it"):
            check()
