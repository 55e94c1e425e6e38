"""Where things lie: the home folder in every path, data that moved, and a seed that is a number."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import QUICK, call, one_run, refused
from PIL import Image

from datamodules import ImageFolderDomains

FIT = ("fit", "--model", "SourceOnly", *QUICK)


@pytest.mark.parametrize("seed", ["true", "false", "null", "1.5"])
def test_a_seed_is_a_number(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    assert refused(capsys, *FIT, "--seed_everything", seed).startswith("seed_everything: expected int")
    Path("seed.yaml").write_text(f"seed_everything: {seed}\n")
    assert refused(capsys, *FIT, "--config", "seed.yaml").startswith("seed_everything: expected int")


def test_the_home_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "here.yaml").write_text("run: {root: ~/runs}\n")
    done = call(capsys, *FIT, "--config=~/here.yaml")
    assert done.code == 0, done.err
    name = one_run(home / "runs").name
    assert call(capsys, *FIT, "--run.dir", "~/mine").code == 0
    given = (*FIT[1:], "--ckpt_path", f"~/runs/{name}/checkpoints/step=2.ckpt", "--run.dir", "~/other")
    assert call(capsys, "test", *given, "--output", "~/out/test.json").code == 0
    assert call(capsys, "predict", *given, "--output", "~/out/p.csv").code == 0
    assert call(capsys, "new", "method", "Mine", "--dir", "~/code").code == 0
    shot = ("fit", "--model", "SHOT", *QUICK, "--model.checkpoint", f"~/runs/{name}", "--run.dir", "~/shot")
    assert call(capsys, *shot).code == 0
    assert {path.name for path in home.iterdir()} == {"here.yaml", "runs", "mine", "out", "code", "shot"}
    assert {path.name for path in (home / "out").iterdir()} == {"test.json", "p.csv"}
    assert not Path("~").exists()


def test_the_home_folder_of_a_table_and_of_a_study(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    table = "tasks: [a->b]\nseeds: [0]\nrows: [{name: x, model: {class_path: SourceOnly}}]\n"
    Path("t.yaml").write_text(f"base: {{data: {{class_path: dafw.testing.toys.ToyData}}}}\n{table}")
    done = call(capsys, "table", "run", "~/t.yaml", "--root", "~/runs", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert str(tmp_path / "runs") in done.out
    assert f"{tmp_path}/none.db" in call(capsys, "tune", "show", "~/none.db").err


@pytest.fixture
def images() -> Path:
    """Two domains of two classes in the folder ``one/pictures``."""
    rng = np.random.default_rng(0)
    for domain in "ab":
        for name in ("cat", "dog"):
            folder = Path("one", "pictures", domain, name)
            folder.mkdir(parents=True)
            for index in range(20):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return Path("one", "pictures")


FOLDERS = (
    *("fit", "--model", "SourceOnly", "--model.network.backbone", "small_bn_net", "--model.network.input_size", "16"),
    *("--data", "ImageFolderDomains", "--data.size", "16", "--data.resize", "16", "--data.augment", "none"),
    *("--data.source", "a", "--data.target", "b", "--data.batch_size", "4", "--data.steps_per_epoch", "1"),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run.plots", "false", "--data.root"),
)


def test_data_that_moved_makes_no_other_run(
    capsys: pytest.CaptureFixture[str], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another data set of the same name does not pass for it."""
    setup: Any = ImageFolderDomains.setup
    assert call(capsys, *FOLDERS, images).code == 0
    run = one_run(Path("runs"))
    for spelling in (f"./{images}/", images.absolute()):
        assert call(capsys, *FOLDERS, spelling).out == f"done already: {run}/result.json\n"
    shutil.move("one", "two")
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolderDomains, "setup", lambda self, stage: calls.append(stage) or setup(self, stage))
        assert call(capsys, *FOLDERS, "two/pictures").out == f"done already: {run}/result.json\n"
    assert calls == ["fit"], "the data is set up once"
    count = json.loads((run / "result.json").read_text())["num_target_test"]
    next(iter(Path("two/pictures/a/cat").iterdir())).unlink()
    done = call(capsys, *FOLDERS, "two/pictures")
    assert (done.code, done.out) == (2, "")
    assert " samples of a changed since " in done.err
    assert call(capsys, *FOLDERS, "two/pictures", "--run.accept_changed_data", "true").code == 0
    assert json.loads((run / "result.json").read_text())["num_target_test"] == count
