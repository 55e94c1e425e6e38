"""``dafw predict RUN``: a run directory is all that is needed to predict the targets, or any files of images."""

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from commands import QUICK, TOY, Outcome, call, rows
from PIL import Image

FOLDERS = (
    *("--data", "ImageFolderDomains", "--data.root", "data", "--data.source", "a", "--data.target", "b"),
    *("--data.size", "6", "--data.resize", "8", "--data.batch_size", "4", "--data.steps_per_epoch", "2"),
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--run.plots", "false", "--run.wandb", "disabled"),
)
NETWORK = ("--model.network.backbone", "dafw.testing.toys.ToyNet")
TRAINED = ("fit", "--model", "SourceOnly", *NETWORK, *FOLDERS, "--run.dir", "run")
LABEL_FREE = """
from dafw.testing.toys import ToyData


class Bare(ToyData):
    def load(self, name, split):
        domain = super().load(name, split)
        return domain.unlabelled() if name in self.target else domain
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, in which the domain b has no labels, and ``run``, which was trained on it."""
    from dafw.cli import main

    folder, random = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for domain in "ab":
        for code, label in enumerate(("cat", "dog")):
            for number in range(20):
                inside = folder / "data" / domain / (label if domain == "a" else "")
                inside.mkdir(parents=True, exist_ok=True)
                pixels = random.normal(60 + 90 * code, 20, (10, 9 + code, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(inside / f"{label}{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        assert main([*TRAINED]) == 0
    return folder


@pytest.fixture(autouse=True)
def copied(made: Path, workplace: Path) -> None:
    """Both, in this test's working directory."""
    shutil.copytree(made, workplace, dirs_exist_ok=True)


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object, file: str = "p.csv") -> dict[str, Any]:
    """The rows of the predictions by the name of the image."""
    done = call(capsys, "predict", *arguments, "--output", file)
    assert done.code == 0, done
    assert done.out.endswith(f"\n{file}\n")
    return {Path(row["sample"]).name: row for row in rows(Path(file).read_text())}


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence with which ``predict`` refuses what it was given."""
    done = call(capsys, "predict", *arguments)
    assert (done.code, done.err.count("dafw: error: ")) == (2, 1), done
    return done.err.partition("dafw: error: ")[2].rstrip("\n")


def test_files_are_predicted_as_the_target_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, with nothing but the run; what cannot be read is listed and left out."""
    expected = predicted(capsys, "run")
    assert len(expected) == 40, "a target without labels is predicted whole"
    shutil.move("data/b", "new")
    shutil.rmtree("data")
    shutil.move("run", "kept")
    Path("new/inner").mkdir()
    shutil.move("new/cat1.png", "new/inner/cat1.png")
    Path("new/broken.png").write_bytes(b"no image")
    Path("new/cut.png").write_bytes(Path("new/cat2.png").read_bytes()[:90])
    Path("new/gone.png").symlink_to("nowhere.png")
    Path("new/notes.txt").write_text("no image")
    done = call(capsys, "predict", "kept", "--images", "new", "--data.eval_batch_size", "7", "--output", "all.csv")
    assert (done.code, done.out) == (0, "40 predictions; skipped files: 2\nall.csv\n")
    skipped = [line for line in done.err.splitlines() if line.startswith("dafw: skipped: ")]
    assert [("broken.png" in line, "cut.png" in line) for line in skipped] == [(True, False), (False, True)]
    assert "passed over: 1 links to nowhere (new/gone.png), 1 files ending in .txt (new/notes.txt)" in done.err
    found = rows(Path("all.csv").read_text())
    assert [row["sample"] for row in found] == sorted(row["sample"] for row in found)
    assert list(found[0]) == ["domain", "sample", "prediction", "p_cat", "p_dog"]
    for row in found:
        assert row == expected[Path(row["sample"]).name] | {"domain": "images", "sample": row["sample"]}
    (checkpoint,) = Path("kept/checkpoints").glob("*.ckpt")
    assert predicted(capsys, "--ckpt_path", checkpoint, "--images", "new/dog3.png").keys() == {"dog3.png"}
    few = predicted(capsys, checkpoint, "--images", "new/dog3.png", "new/dog4.png", "new/gone.png")
    assert few.keys() == {"dog3.png", "dog4.png"}
    assert few["dog3.png"]["p_cat"] == expected["dog3.png"]["p_cat"]


def test_overrides_and_rejection(capsys: pytest.CaptureFixture[str]) -> None:
    """What follows the run replaces what its configuration says."""
    assert call(capsys, *TRAINED[:-1], "rejects", "--model.rejection", "Confidence").code == 0
    rule = ("--model.rejection.threshold", "0.0")
    found = predicted(capsys, "rejects", "--images", "data/b/cat1.png", *rule)["cat1.png"]
    assert list(found) == ["domain", "sample", "prediction", "unknown", "p_cat", "p_dog"]
    assert found["prediction"] == "unknown"
    assert float(found["unknown"]) > 0


def test_what_is_wrong_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.png").write_bytes(b"no image")
    Path("empty").mkdir()
    assert failed(capsys, "--images", "data/b") == (
        "dafw predict needs a run, its directory or one of its checkpoints: dafw predict RUN"
    )
    assert failed(capsys, "nowhere") == "there is no run nowhere: dafw predict takes a run directory or a checkpoint"
    assert failed(capsys, "data") == "data is no run: there is no config.yaml in data or in ."
    assert failed(capsys, "run", "--images", "nothing") == "there is no file or folder nothing (--images)"
    assert failed(capsys, "run", "--images", "empty") == "empty (--images) holds no images"
    assert failed(capsys, "run", "--images", "broken.png").startswith(
        "none of the 1 files of --images can be read: the image broken.png cannot be decoded"
    )
    assert "split" in failed(capsys, "run", "--split", "half")
    assert failed(capsys, "run", "--images", "data/b", "--split", "all") == (
        "split is a part of a target: give --images or --split, not both"
    )
    done = call(capsys, "fit", "run")
    assert done.code == 2
    shutil.rmtree("run/checkpoints")
    assert failed(capsys, "run") == "there is no checkpoint in run/checkpoints: train first, or give --ckpt_path"
    assert failed(capsys, "run", "--images", "data/b").startswith("there is no checkpoint in run/checkpoints")


def test_a_datamodule_that_prepares_no_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--run.dir", "toy").code == 0
    assert failed(capsys, "toy", "--images", "data/b").startswith("ToyData does not say how an image is prepared")


def test_the_other_commands_take_a_run_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that was moved; a target without labels is named, not scored."""
    shutil.move("run", "moved")
    done = call(capsys, "test", "moved")
    assert (done.code, done.out.splitlines()[-2:]) == (0, ["b: not tested, since it has no labels", "moved/test.json"])
    done = call(capsys, "validate", "moved/checkpoints/step=2.ckpt")
    assert (done.code, "val/source_accuracy" in done.out, "oracle" in done.out) == (0, True, False)


def test_parquet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the ending of the file; without pyarrow nothing is predicted."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    given = ("run", "--images", "data/b", "--output", "p.parquet")
    assert failed(capsys, *given).startswith("p.parquet is a Parquet file, which needs pyarrow: install it")
    tables: list[dict[str, list[Any]]] = []

    def write_table(table: dict[str, list[Any]], file: Any) -> None:
        tables.append(table)
        file.write(b"PAR1")

    arrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    monkeypatch.setattr(arrow, "table", dict, raising=False)
    monkeypatch.setattr(parquet, "write_table", write_table, raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert call(capsys, "predict", *given).code == 0
    assert Path("p.parquet").read_bytes() == b"PAR1"
    expected = predicted(capsys, "run", "--images", "data/b")
    assert [*tables[0]] == [*next(iter(expected.values()))]
    assert [f"{share:.6f}" for share in tables[0]["p_dog"]] == [row["p_dog"] for row in expected.values()]


@pytest.mark.parametrize(
    ("options", "number", "part"),
    [
        ((), 21, "its test split alone; --split all predicts all its samples"),
        (("--split", "test"), 21, "its test split alone; --split all predicts all its samples"),
        (("--split", "all"), 82, "all its samples"),
    ],
)
def test_how_much_of_a_target_is_predicted(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], number: int, part: str
) -> None:
    assert call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--run.dir", "toy").code == 0
    done = call(capsys, "predict", "toy", *options)
    assert (done.code, done.out) == (0, f"b: {number} predictions, of {part}\npredictions.csv\n")
    names = [row["sample"] for row in rows(Path("predictions.csv").read_text())]
    assert len(names) == len(set(names)) == number


def test_a_sample_of_two_splits_is_predicted_once(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, *TRAINED[:-1], "office", "--data.transductive", "true")
    assert done.code == 0, done
    assert len(predicted(capsys, "office")) == len(rows(Path("p.csv").read_text())) == 40


def test_a_model_that_is_evaluated_reads_no_other_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """The file that the network started from may be gone."""
    import torch

    from dafw.testing.toys import ToyNet

    torch.save(ToyNet().state_dict(), "start.pt")
    done = call(capsys, *TRAINED[:-1], "started", "--model.network.weights", "start.pt")
    assert done.code == 0, done
    Path("start.pt").unlink()
    assert len(predicted(capsys, "started")) == 40


@pytest.fixture
def shot(capsys: pytest.CaptureFixture[str]) -> Outcome:
    """A source-free run without the source's folder."""
    shutil.rmtree("data/a")
    return call(capsys, "fit", "--model", "SHOT", "--model.checkpoint", "run", *FOLDERS, "--run.dir", "shot")


def test_no_folder_of_a_source_is_needed_without_the_source(capsys: pytest.CaptureFixture[str], shot: Outcome) -> None:
    """The classes come from the checkpoint, later from the run's own; what sees the source still asks for it."""
    assert shot.code == 0, shot
    assert next(iter(predicted(capsys, "run").values())).keys() >= {"p_cat", "p_dog"}
    shutil.rmtree("run")
    Path("shot/result.json").unlink()
    assert call(capsys, "fit", "--config", "shot/config.yaml", "--run.dir", "shot").code == 0
    assert call(capsys, "test", "shot").code == 0
    assert len(predicted(capsys, "shot")) == 40
    assert call(capsys, *TRAINED).err == 'dafw: error: unknown domain "a": (choices: b)\n'


def test_a_manifest_without_the_labels_of_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["path,label,domain"]
    for path in sorted(Path("data").rglob("*.png")):
        domain, *inner = path.relative_to("data").parts
        lines.append(f"{path.relative_to('data')},{inner[0] if domain == 'a' else ''},{domain}")
    Path("list.csv").write_text("\n".join(lines))
    listed = ("--data.manifest", "list.csv", "--run.dir", "listed")
    assert call(capsys, *TRAINED[:-2], *listed).code == 0
    expected = predicted(capsys, "listed")
    assert len(expected) == 40
    Path("list.csv").unlink()
    assert predicted(capsys, "listed", "--images", "data/b")["dog2.png"]["p_dog"] == expected["dog2.png"]["p_dog"]


@pytest.mark.parametrize("model", [("MemSPM",), ("SourceOnly", "--model.rejection", "Entropy")])
def test_nothing_is_said_of_labels_that_nobody_has(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, model: tuple[str, ...]
) -> None:
    """A method that rejects trains, draws and predicts; nobody calls its rejections mistakes."""
    Path("bare.py").write_text(LABEL_FREE)
    plots = ("--run.plots", "true", "--trainer.max_epochs", "1", "--data.steps_per_epoch", "2")
    done = call(capsys, "fit", "--model", *model, *TOY, "--data", "bare.Bare", *plots, "--run.dir", "bare")
    assert (done.code, done.err, caplog.text) == (0, "", "")
    assert "b: accuracy nan (b has no labels)" in done.out
    done = call(capsys, "predict", "bare")
    assert (done.code, done.err, done.out.splitlines()[0]) == (0, "", "b: 82 predictions, of all its samples")


def test_the_configuration_of_a_run_is_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    before = yaml.safe_load(Path("run/config.yaml").read_text())
    assert {"images", "split"}.isdisjoint(before)
    predicted(capsys, "run", "--images", "data/b")
    assert yaml.safe_load(Path("run/config.yaml").read_text()) == before
