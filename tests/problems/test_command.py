"""A problem of one's own goes through the command: masks instead of classes."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed_folders import coco, write_coco
from boxed_folders import image as boxed_image
from commands import CHECKOUT, call, one_run, refused
from PIL import Image

from dafw.errors import UserError
from dafw.metrics.box_matching import ERRORS
from dafw.metrics.boxes import NAMES
from dafw.problems import Segmentation
from dafw.testing import Case, cases
from dafw.testing.dense_toys import ToySegmenter
from dafw.testing.toys import toy_network

#: What follows the number of predictions.
COUNTED = "predictions, of its test split alone; --split all predicts all its samples"
SILENT = """
from dafw.problems import Problem
from dense_parts import Masks


class Silent(Masks):
    write_predictions = Problem.write_predictions
"""
DENSE = (
    *("--model", "dense_parts.MatchChannels", "--model.network", "dense_parts.DenseNetwork"),
    *("--model.problem", "dense_parts.Masks", "--data", "dense_parts.Squares", "--data.source", "bright"),
    *("--data.target", "dim", "--data.batch_size", "6", "--data.steps_per_epoch", "4", "--trainer.max_epochs", "2"),
    *("--trainer.accelerator", "cpu", "--model.lr", "0.2"),
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie beside the command, as a user's do."""
    shutil.copy(CHECKOUT / "tests" / "problems" / "test_segmentation.py", tmp_path / "dense_parts.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_masks(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", *DENSE)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert (result["metric"], set(result["test"]), set(result["test"]["dim"])) == ("iou", {"bright", "dim"}, {"iou"})
    assert [set(entry["validators"]) for entry in result["history"]] == [{"source_iou", "source_loss"}] * 2
    assert [path.name for path in (folder / "plots").iterdir()] == ["curves.png"]
    for command in ("test", "validate"):
        again = call(capsys, command, *DENSE)
        assert (again.code, again.err) == (0, "")
        assert "iou" in again.out
    predicted = call(capsys, "predict", *DENSE)
    assert (predicted.code, predicted.out.splitlines(), predicted.err) == (0, [f"dim: 24 {COUNTED}", "masks.npz"], "")
    with np.load("masks.npz") as masks:
        assert {name: masks[name].shape for name in masks} == {"dim": (24, 12, 12)}


def test_a_problem_that_cannot_write_its_predictions_is_refused_before_it_predicts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("silent_parts.py").write_text(SILENT)
    silent = [*DENSE, "--model.problem", "silent_parts.Silent"]
    assert call(capsys, "fit", *silent).code == 0
    refused = call(capsys, "predict", *silent)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "Silent does not say how predictions are written: it must define write_predictions" in refused.err


SHIPPED = (
    *("--model", "DANN", "--model.network", "dafw.testing.dense_toys.ToySegmenter", "--model.problem", "Segmentation"),
    *("--data", "dafw.testing.toys.ToyData", "--data.kind", "segmentation", "--data.sizes", "true"),
    *("--data.source", "a", "--data.target", "b", "--data.batch_size", "8", "--data.steps_per_epoch", "4"),
    *("--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--model.width", "8"),
)


def test_the_shipped_problem(capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics by class, pictures of its own, label-free validators, predictions as files."""
    done = call(capsys, "fit", *SHIPPED)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert result["metric"] == "miou"
    by_class = {f"{name}/{label}" for name in ("iou", "dice") for label in ("zero", "one", "two")}
    assert set(result["test"]["b"]) == {"miou", "mdice", "pixel_accuracy"} | by_class
    assert all(0 <= value <= 1 for value in result["test"]["b"].values())
    validators = result["history"][-1]["validators"]
    assert {"source_miou", "source_loss", "snd", "dev"} <= set(validators)
    assert all(np.isfinite(value) for value in validators.values())
    assert {path.name for path in (folder / "plots").iterdir()} == {"curves.png", "masks.png", "examples.json"}
    predicted = call(capsys, "predict", *SHIPPED)
    assert (predicted.code, predicted.out.splitlines(), predicted.err) == (0, [f"b: 21 {COUNTED}", "predictions"], "")
    index = [line.split(",") for line in Path("predictions/index.csv").read_text().splitlines()]
    assert index[0] == ["domain", "sample", "file", "confidence", "share_zero", "share_one", "share_two"]
    assert index[1][:3] == ["b", "b/0", "b/b_0.png"]
    assert all(1 / 3 < float(line[3]) <= 1 and abs(sum(map(float, line[4:])) - 1) < 1e-5 for line in index[1:])
    assert len(index) == 1 + 21 == 1 + len(list(Path("predictions/b").iterdir()))
    for (_, _, file, *_), size in zip(index[1:], [(8, 8), (6, 8), (8, 5), (7, 6)], strict=False):
        mask = np.asarray(Image.open(Path("predictions", file)))
        assert (mask.shape, mask.dtype) == (size, np.uint8)
        assert mask.max() < 3


BOXES = (
    *("--model", "SourceOnly", "--model.network", "Detector", "--model.network.proposals_in_training", "20"),
    *("--data", "dafw.testing.toys.ToyData", "--data.kind", "detection"),  # the network says what is predicted
    *("--data.source", "a", "--data.target", "b", "--data.batch_size", "8", "--data.steps_per_epoch", "4"),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
)


def test_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", *BOXES)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert result["metric"] == "ap50"
    by_class = {f"{name}/{label}" for name in ("ap", "ap50") for label in ("zero", "one", "two")}
    assert set(result["test"]["b"]) == {*NAMES, "detection_accuracy", "images_without_box", *ERRORS, *by_class}
    validators = result["history"][-1]["validators"]
    assert set(validators) == {"source_ap50", "source_loss", "entropy", "im", "pseudo_boxes"}
    assert validators["pseudo_boxes"] >= 0
    kept = {path.name for path in (folder / "plots").iterdir()}
    assert kept == {"curves.png", "boxes.png", "errors.png", "examples.json"}
    predicted = call(capsys, "predict", *BOXES)
    assert (predicted.code, predicted.out.splitlines(), predicted.err) == (
        0,
        [f"b: 21 {COUNTED}", "predictions.json"],
        "",
    )
    entries = json.loads(Path("predictions.json").read_text())
    assert {entry["domain"] for entry in entries} == {"b"}
    assert all(0 <= entry["score"] <= 1 and entry["category"] in ("zero", "one", "two") for entry in entries)


def test_metrics_of_boxes_without_their_package_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dafw.metrics.boxes.find_spec", lambda name: None)
    said = refused(capsys, "fit", *BOXES)
    assert said == 'the average precision of boxes needs the package faster-coco-eval: pip install "dafw[detection]"'


def test_boxes_are_predicted_in_pixels_of_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    """The detector sees images of half the size; two targets, one of them without labels."""
    write_coco(Path("data"), "day", coco(24))
    write_coco(Path("data"), "night", coco(12))
    for i in range(24):
        boxed_image(Path(f"data/fog/{i}.png"), (40, 30))
    task = (
        *("--model", "SourceOnly", "--model.network", "Detector", "--model.problem", "Detection"),
        *("--model.network.score_threshold", "0"),
        *("--data", "CocoDomains", "--data.root", "data", "--data.source", "day", "--data.target", "[night, fog]"),
        *("--data.size", "[16, 16]", "--data.steps_per_epoch", "2", "--data.batch_size", "4"),
        *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run.plots", "false"),
    )
    assert call(capsys, "fit", *task).code == 0
    assert call(capsys, "predict", *task).code == 0
    entries = json.loads(Path("predictions.json").read_text())
    read = {name: json.loads(Path(f"predictions-{name}.json").read_text()) for name in ("night", "fog")}
    assert entries == read["night"] + read["fog"]
    assert {one["category"]: one["category_id"] for one in read["night"]} == {"cat": 5, "dog": 6}, "those of the file"
    assert {one["image_id"] for one in read["night"]} <= set(range(10, 22))
    assert all(one["image_id"].startswith("fog/") and one["category_id"] < 2 for one in read["fog"])
    far = {
        name: np.array([[x + width, y + height] for x, y, width, height in (one["bbox"] for one in found)]).max(0)
        for name, found in read.items()
    }
    for name, (height, width) in {"night": (40, 32), "fog": (40, 30)}.items():
        assert (far[name] <= (width, height)).all()
        assert (far[name] > 16).all(), "the boxes are those of the images that the detector saw"


def test_a_method_for_classes_refuses_masks_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    masks = ("--model.problem", "Segmentation", "--data", "dafw.testing.toys.ToyData", "--data.kind", "segmentation")
    domains = ("--data.source", "a", "--data.target", "b")
    refused = call(capsys, "fit", "--model", "MCC", *masks, *domains)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "MCC is a method for classification, and model.problem is Segmentation (segmentation)" in refused.err
    network = ("--model.network", "dafw.testing.dense_toys.ToySegmenter")
    refused = call(capsys, "fit", "--model", "MCC", *network, *masks, *domains)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "dafw.testing.dense_toys.ToySegmenter is a network, but this method needs a Network" in refused.err


def test_every_other_method_refuses_a_dense_problem() -> None:
    """None of them would train on the wrong terms without a word."""
    takes = {item.name for item in cases() if not item.owner.kinds or "segmentation" in item.owner.kinds}
    alone = {item.name for item in cases() if item.owner.kinds == ("segmentation",)}
    assert takes - alone == {"SourceOnly", "AdaBN", "DANN", "DeepCORAL", "DAN", "ERM"}
    assert alone >= {"Advent", "Dacs", "AdaMI", "AdaWAC"}
    for item in cases():
        if item.name not in takes:
            kinds = " and ".join(item.owner.kinds)
            with pytest.raises(UserError, match=f"{item.name} is a method for {kinds}, and model.problem is Seg"):
                item.owner(ToySegmenter(), num_classes=3, problem=Segmentation(), **signature(item))


def signature(item: Case) -> dict[str, Any]:
    """The arguments that a method cannot do without."""
    needed = {"num_sources": 2, "checkpoint": "none.ckpt", "cloud": toy_network()}
    parameters = inspect.signature(item.owner.__init__).parameters
    return {name: value for name, value in needed.items() if name in parameters}


PREPARED = """
import numpy as np

from dafw.data.images import as_item, as_rgb
from dafw.testing.toys import ToyData


class Prepared(ToyData):
    def evaluation_transform(self):
        return lambda file: as_item(np.array(as_rgb(file)))
"""


@pytest.mark.parametrize(("options", "name"), [(SHIPPED, "predictions"), (BOXES, "predictions.json")])
def test_files_of_images_get_masks_and_boxes(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], name: str
) -> None:
    """For a datamodule of the user's that says how a file is prepared; images may differ in size."""
    Path("prepared.py").write_text(PREPARED)
    Path("new").mkdir()
    sizes = {"a": (32, 32), "b": (24, 32), "c": (32, 20)}
    for name_of_image, size in sizes.items():
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(Path("new", f"{name_of_image}.png"))
    short = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--run.plots", "false", "--run.dir", "run")
    assert call(capsys, "fit", *options, "--data", "prepared.Prepared", *short).code == 0
    done = call(capsys, "predict", "run", "--images", "new")
    assert (done.code, done.out, done.err) == (0, f"3 predictions; skipped files: 0\n{name}\n", "")
    if name == "predictions":
        masks = {path.name: np.asarray(Image.open(path)).shape for path in Path(name, "images").iterdir()}
        assert masks == {f"new_{each}.png.png": size for each, size in sizes.items()}
    else:
        found = {entry["image_id"] for entry in json.loads(Path(name).read_text())}
        assert found <= {f"new/{each}.png" for each in sizes}
