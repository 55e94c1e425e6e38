"""Paths that cannot be read or written, and files of a run that a power cut damaged: one sentence, no traceback."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import QUICK, call, one_run
from PIL import Image

import dafw.run.commands

FIT = ("fit", "--model", "SourceOnly", *QUICK)


def failing(function: Callable[..., Any], name: str, number: int) -> Callable[..., Any]:
    """The function, which fails for paths that end in ``name``."""

    def fail(path: Any = ".", *rest: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return function(path, *rest, **options)

    return fail


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("file", r"is a file, and a folder is needed there|cannot be read or written \(Not a directory\)"),
        ("x" * 300, r"cannot be read or written \(File name too long\)"),
        ("sealed", r"sealed cannot be read or written \(Read-only file system\)"),
    ],
)
def test_a_root_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: str, said: str
) -> None:
    Path("file").touch()
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir, "sealed", errno.EROFS))
    done = call(capsys, *FIT, "--run.root", root)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(rf"dafw: error: \S* ?({said})\n", done.err), done.err


def test_an_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asked for a file, as in an archive of runs, a warning is enough."""
    assert call(capsys, *FIT).code == 0
    for command in ("predict", "test"):
        done = call(capsys, command, *FIT[1:], "--output", ".")
        assert done.code == 2
        assert done.err == "dafw: error: . cannot be read or written (Is a directory)\n"
    with monkeypatch.context() as sealed:
        sealed.setattr(os, "access", lambda path, mode: str(path) != str(Path.cwd()))
        sealed.setattr(dafw.run.commands.DafwCLI, "make_trainer", None)  # what is refused begins no work
        for command, output in (("predict", "new/p.csv"), ("test", "t.json"), ("predict", "."), ("test", ".")):
            done = call(capsys, command, *FIT[1:], "--output", output)
            assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
            assert "cannot be read or written" in done.err
        assert not Path("new").exists()

    def refuse(result: Any, path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(dafw.run.commands, "write_result", refuse)
    path = one_run(Path("runs")) / "test.json"
    done = call(capsys, "test", *FIT[1:])
    reason = f"{path} cannot be read or written (Read-only file system)"
    assert (done.code, done.err) == (0, f"dafw: warning: {reason}: give --output to keep these numbers in a file\n")
    assert "test/b/accuracy" in done.out
    assert call(capsys, "test", *FIT[1:], "--output", "x.json").code == 2


def test_a_class_folder_that_may_not_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/cat", "a/dog", "b/cat", "b/dog"):
        Path("data", name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(Path("data", name, "1.png"))
    for function in ("scandir", "listdir"):
        monkeypatch.setattr(os, function, failing(getattr(os, function), "a/cat", errno.EACCES))
    data = ("--data", "ImageFolderDomains", "--data.root", "data", "--data.source", "a", "--data.target", "b")
    done = call(capsys, "fit", "--model", "SourceOnly", *data)
    assert (done.code, done.out) == (2, "")
    said = "the folder data/a/cat cannot be read: Permission denied; give yourself the right to read it"
    assert done.err == f"dafw: error: {said}\n"


DAMAGED = (b"", b"\0" * 300, b"[1", b"[1]", b"\xff\xfe", b"[" * 10000)


def test_a_damaged_configuration_of_a_directory_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can tell of which run its checkpoints are. Without a checkpoint there is nothing to mix up."""
    fit = (*FIT, "--run.dir", "here")
    assert call(capsys, *fit).code == 0
    Path("here/result.json").unlink()
    for text in DAMAGED:
        Path("here/config.yaml").write_bytes(text)
        done = call(capsys, *fit)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "here/config.yaml is damaged, so nobody can tell of which run the checkpoints" in done.err
    for path in Path("here/checkpoints").iterdir():
        path.unlink()
    Path("here/metrics.csv").unlink()
    assert call(capsys, *fit).code == 0


def test_a_damaged_configuration_of_a_directory_named_by_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *FIT).code == 0
    folder = one_run(Path("runs"))
    whole = (folder / "config.yaml").read_text()
    for text in (DAMAGED[0], whole[:500].encode()):
        (folder / "result.json").unlink()
        (folder / "config.yaml").write_bytes(text)
        done = call(capsys, *FIT, "--run.dir", folder)
        assert (done.code, done.err) == (0, "")
        assert (folder / "config.yaml").read_text().splitlines()[:10] == whole.splitlines()[:10]
