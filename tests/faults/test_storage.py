"""A disk that is full or gone, and files of a run that are damaged or hostile."""

import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, fork, one_run
from interrupted import FIT, at_step, before, same

from dafw.checkpoints import checkpoints
from dafw.files import UNFINISHED


def full(name: str) -> Callable[[], None]:
    """Every byte that this process writes into the file of this name in the run directory meets a full disk."""

    def fill() -> None:
        for folder in Path("runs").iterdir():
            (folder / f"{name}.{os.getpid()}{UNFINISHED}").symlink_to("/dev/full")

    return fill


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_for_a_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    fit = (*FIT, "--run.checkpoint_every", 4)
    failed = fork(tmp_path, *fit, setup=at_step(7, full("checkpoints/step=8.ckpt"))).wait()
    folder = one_run(tmp_path / "runs")
    path = folder.relative_to(tmp_path) / "checkpoints" / "step=8.ckpt"
    assert (failed.code, failed.err) == (
        2,
        f"dafw: error: no space left while writing {path}; step=4.ckpt is intact\n",
    )
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step=4.ckpt"]
    assert fork(tmp_path, *fit).wait().code == 0
    same(folder, uninterrupted)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_for_the_first_checkpoint(tmp_path: Path) -> None:
    """Nothing was trained, so nothing stays behind."""

    def fill() -> None:
        (folder,) = Path("runs").iterdir()
        (folder / "checkpoints").mkdir()
        full("checkpoints/step=0.ckpt")()

    failed = fork(tmp_path, *FIT, setup=before("train_dataloader", fill)).wait()
    assert failed.code == 2
    assert re.fullmatch(r"dafw: error: no space left while writing runs/\S+/checkpoints/step=0\.ckpt\n", failed.err)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_for_the_log(tmp_path: Path, uninterrupted: Path) -> None:
    fit = (*FIT, "--run.checkpoint_every", 4)
    failed = fork(tmp_path, *fit, setup=at_step(7, full("metrics.csv"))).wait()
    folder = one_run(tmp_path / "runs")
    path = folder.relative_to(tmp_path) / "metrics.csv"
    assert (failed.code, failed.err) == (2, f"dafw: error: no space left on the disk for {path}\n")
    assert (folder / "metrics.csv").read_text().startswith("step,")
    assert fork(tmp_path, *fit).wait().code == 0
    same(folder, uninterrupted)


def no_file_above(size: int) -> Callable[[], None]:
    """From now on a file of this process can have so many bytes. torch meets this limit as it meets a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_within_a_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    fit = (*FIT, "--run.checkpoint_every", 4)
    failed = fork(tmp_path, *fit, setup=at_step(7, no_file_above(12000))).wait()
    folder = one_run(tmp_path / "runs")
    path = folder.relative_to(tmp_path) / "checkpoints" / "step=8.ckpt"
    said = f"dafw: error: no space left while writing {path}; step=4.ckpt is intact\n"
    assert (failed.code, failed.err) == (2, said)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step=4.ckpt"]
    assert fork(tmp_path, *fit).wait().code == 0
    same(folder, uninterrupted)


def test_a_disk_that_is_full_within_a_row_of_the_log(tmp_path: Path) -> None:
    fit = (*FIT, "--trainer.log_every_n_steps", 1, "--run.checkpoint_every", 4)
    whole = fork(tmp_path / "whole", *fit)

    def fill() -> None:
        (path,) = Path("runs").glob("*/metrics.csv")
        no_file_above(path.stat().st_size + 10)()

    failed = fork(tmp_path / "parts", *fit, setup=at_step(7, fill)).wait()
    folder = one_run(tmp_path / "parts" / "runs")
    said = f"dafw: error: no space left on the disk for {folder.relative_to(tmp_path / 'parts')}/metrics.csv\n"
    assert (failed.code, failed.err) == (2, said)
    assert (folder / "metrics.csv").read_bytes()[-1:] != b"\n"
    assert fork(tmp_path / "parts", *fit).wait().code == whole.wait().code == 0
    same(folder, one_run(tmp_path / "whole" / "runs"))


@pytest.mark.parametrize("what", ["runs", "run", "checkpoints", "result"])
def test_what_is_removed_while_a_run_works(tmp_path: Path, uninterrupted: Path, what: str) -> None:
    """It ends with a sentence, or with all of its files."""

    def remove() -> None:
        (folder,) = Path("runs").iterdir()
        place = {"runs": Path("runs"), "run": folder, "checkpoints": folder / "checkpoints", "result": folder}[what]
        shutil.rmtree(place)

    setup = before("collect_result", remove) if what == "result" else at_step(7, remove)
    done = fork(tmp_path, *FIT, "--run.checkpoint_every", 4, setup=setup).wait()
    if what == "checkpoints":
        assert (done.code, done.err) == (0, "")
        same(one_run(tmp_path / "runs"), uninterrupted)
    else:
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert f"runs/{uninterrupted.name} was removed while this process worked in it" in done.err
        assert not list(tmp_path.glob("runs/*/*"))


@pytest.fixture
def two(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints of a run that is not done: steps 4 and 8, say, of the same weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shutil.copytree(uninterrupted, Path("runs") / uninterrupted.name)
    folder = Path("runs") / uninterrupted.name
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "step=12.ckpt").rename(folder / "checkpoints" / "step=4.ckpt")
    shutil.copy(folder / "checkpoints" / "step=4.ckpt", folder / "checkpoints" / "step=8.ckpt")
    return folder / "checkpoints"


@pytest.mark.parametrize("size", [0, 100, 0.5, -1])
def test_truncated(capsys: pytest.CaptureFixture[str], two: Path, size: float) -> None:
    path = two / "step=8.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    for command in ("fit", "test"):
        done = call(capsys, command, *FIT[1:])
        assert (done.code, done.out, done.err) == (
            2,
            "",
            f"dafw: error: {path} is truncated or no checkpoint; {two / 'step=4.ckpt'} is intact\n",
        )
    (two / "step=4.ckpt").unlink()
    assert call(capsys, "fit", *FIT[1:]).err == f"dafw: error: {path} is truncated or no checkpoint\n"


def test_damaged(capsys: pytest.CaptureFixture[str], two: Path) -> None:
    path = two / "step=8.ckpt"
    content = torch.load(path, weights_only=True)
    data = content["state_dict"]["critic.0.weight"].numpy().tobytes()
    whole = path.read_bytes()
    assert whole.count(data) == 1
    path.write_bytes(whole.replace(data, bytes(len(data))))
    done = call(capsys, *FIT)
    assert (done.code, done.err) == (
        2,
        f"dafw: error: {path} is damaged; {two / 'step=4.ckpt'} is intact\n",
    )


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("hacked"),)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_a_checkpoint_that_would_run_code(capsys: pytest.CaptureFixture[str], two: Path, form: str) -> None:
    path = two / "step=8.ckpt"
    content = torch.load(path, weights_only=True) | {"extra": Hostile()}
    if form == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for command, arguments in (("fit", ()), ("test", ()), ("predict", ("--ckpt_path", path))):
        done = call(capsys, command, *FIT[1:], *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert str(path) in done.err
        assert ("could run code" if form == "zip" else "no checkpoint") in done.err
    assert not Path("hacked").exists()
    torch.load(path, weights_only=False) if form == "zip" else pickle.loads(path.read_bytes())
    assert Path("hacked").exists()  # it would have


def test_of_another_method(capsys: pytest.CaptureFixture[str], two: Path) -> None:
    fit = [word if word != "DANN" else "SourceOnly" for word in FIT if word not in ("--model.width", "8")]
    fit[fit.index("--data.batch_size") + 1 : fit.index("--data.batch_size") + 1] = ["8"]
    done = call(capsys, *fit, "--run.dir", "other")
    assert done.code == 0, done.err
    (foreign,) = checkpoints(Path("other/checkpoints"))
    shutil.copy(foreign, two / "step=9.ckpt")
    done = call(capsys, *FIT)
    assert (done.code, done.err) == (2, f"dafw: error: {two / 'step=9.ckpt'} holds a SourceOnly, not a DANN\n")


def test_what_a_killed_writer_left(capsys: pytest.CaptureFixture[str], two: Path, uninterrupted: Path) -> None:
    """A file that was not finished is no checkpoint, and is written anew."""
    for path in two.iterdir():
        path.unlink()
    (two / f"step=12.ckpt.1{UNFINISHED}").write_bytes(b"half")
    assert call(capsys, *FIT).code == 0
    assert [path.name for path in two.iterdir()] == ["step=12.ckpt"]
    same(two.parent, uninterrupted)
