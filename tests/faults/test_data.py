"""Images that cannot be decoded and workers that die."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import Outcome, fork, one_run
from interrupted import FIT, at_step, same
from PIL import Image

FOLDERS = (
    *("fit", "--model", "DANN", "--model.width", "8", "--model.network.backbone", "small_bn_net"),
    *("--model.network.input_size", "20", "--data", "ImageFolderDomains", "--data.root", "images"),
    *("--data.source", "art", "--data.target", "photo", "--data.size", "20", "--data.resize", "20"),
    *("--data.batch_size", "8", "--data.steps_per_epoch", "12", "--trainer.max_epochs", "1", "--run.plots", "false"),
    *("--trainer.accelerator", "cpu", "--data.augment", "none"),
)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Folders of two domains in ``tmp_path``; the returned image of the source is cut short, in the training split."""
    rng = np.random.default_rng(0)
    paths = []
    for domain in ("art", "photo"):
        for name in ("cup", "mug"):
            folder = tmp_path / "images" / domain / name
            folder.mkdir(parents=True)
            for index in range(30):
                paths.append(folder / f"{index}.png")
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(paths[-1])
    from datamodules.splits import hashed_split

    path = next(
        p for p in paths if hashed_split(p.relative_to(tmp_path / "images").as_posix(), (0.8, 0.1, 0.1)) == "train"
    )
    path.write_bytes(path.read_bytes()[:200])
    return path


def fit(folder: Path, *arguments: object) -> Outcome:
    return fork(folder, *FOLDERS, *arguments, DAFW_CACHE=str(folder / "cache")).wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image(tmp_path: Path, broken: Path, workers: int) -> None:
    failed = fit(tmp_path, "--data.num_workers", workers)
    title, where, *domains = failed.out.splitlines()
    assert (failed.code, title) == (
        2,
        "DANN on art->photo, seed 0: 12 steps on cpu (1 thread, channels last, fused optimizer)",
    )
    assert where == f"in runs/{one_run(tmp_path / 'runs').name}"
    assert [line.split(": ")[0] for line in domains] == ["art", "photo"]
    name = broken.relative_to(tmp_path)
    assert failed.err.startswith(f"dafw: error: the image {name} cannot be decoded (")
    assert failed.err.endswith("mend or remove it, or leave such images out with --data.on_corrupt skip\n")
    assert failed.err.count("\n") == 1


def test_corrupt_images_left_out(tmp_path: Path, broken: Path) -> None:
    done = fit(tmp_path, "--data.num_workers", 2, "--data.on_corrupt", "skip")
    assert done.code == 0, done.err
    assert str(broken.relative_to(tmp_path / "images")) in done.err
    assert json.loads((one_run(tmp_path / "runs") / "result.json").read_text())["steps"] == 12


def kill_a_worker() -> None:
    ours = [child for child in multiprocessing.active_children() if child._parent_pid == os.getpid()]  # type: ignore[attr-defined]
    os.kill(min(child.pid or 0 for child in ours), signal.SIGKILL)


def test_a_worker_that_dies(tmp_path: Path, uninterrupted: Path) -> None:
    fit = (*FIT, "--data.num_workers", 2, "--run.checkpoint_every", 4)
    failed = fork(tmp_path, *fit, setup=at_step(6, kill_a_worker)).wait()
    assert failed.code == 1, failed
    said = "dafw: error: a process that loaded data was killed; the same command goes on from the last checkpoint"
    assert failed.err.splitlines()[-1] == said  # torch may say more before it, depending on where the signal met it
    again = fork(tmp_path, *fit).wait()
    assert (again.code, again.err) == (0, "")
    same(one_run(tmp_path / "runs"), uninterrupted)
