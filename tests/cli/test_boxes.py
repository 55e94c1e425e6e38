"""The command on images with boxes in files."""

import json
import shutil
from pathlib import Path

import pytest
from boxed_folders import coco, image, write_coco
from commands import call, refused

DETECTOR = ("--model", "SourceOnly", "--model.network", "dafw.nn.detector.Detector", "--model.problem", "Detection")
SHORT = (
    *("--data.batch_size", 4, "--data.steps_per_epoch", 1, "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu"),
    *("--run.plots", "false", "--data.transductive", "true"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a cache of its own for each test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "cameras", "a", coco(30))
    for i in range(20):
        image(tmp_path / "cameras" / "b" / f"{i}.png")


def test_from_annotations_of_one_camera_and_images_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "CocoDomains", "--data.root", "cameras", "--data.source", "a", "--data.target", "b")
    code, out, err = call(capsys, "fit", *DETECTOR, *data, "--data.size", 32, *SHORT, "--run.dir", "run")
    assert code == 0, err
    assert "a: 30 images, 58 boxes of 2 classes, 1 image without a box; " in out
    assert "b: 20 images, no labels; " in out
    shutil.rmtree("cameras/a")  # what is trained needs no source any more
    Path("cameras/a.json").unlink()
    code, out, err = call(capsys, "predict", "run")
    assert code == 0, err
    assert isinstance(json.loads(Path(out.splitlines()[-1]).read_text()), list)
    code, out, err = call(capsys, "predict", "run", "--images", "cameras/b", "--output", "found.json")
    assert code == 0, err
    assert "20 predictions; skipped files: 0" in out


@pytest.mark.parametrize("kind", ["a bad box", "no file"])
def test_what_is_wrong_is_one_sentence_before_the_first_step(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = json.loads(Path("cameras/a.json").read_text())
    if kind == "a bad box":
        given["annotations"][3]["bbox"] = [1, 1, 0, 0]
    else:
        Path("cameras/a/7.png").unlink()
    Path("cameras/a.json").write_text(json.dumps(given))
    data = ("--data", "CocoDomains", "--data.root", "cameras", "--data.source", "a", "--data.target", "b")
    said = refused(capsys, "fit", *DETECTOR, *data, *SHORT)
    assert said.startswith("cameras/a.json")
    assert ("annotation 5: the box" if kind == "a bad box" else "cameras/a/7.png") in said


def test_every_label_is_read_by_data_labels(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "CocoDomains", "--data.root", "cameras", "--data.source", "a", "--data.target", "b")
    code, out, err = call(capsys, "data", "labels", *DETECTOR, *data, "--data.size", 12)
    assert code == 0, (out, err)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--data.label_sets", "digits-open"), "data.label_sets needs one class a sample"),
        (("--data.source_sampling", "class_balanced"), "data.source_sampling class_balanced needs one class a sample"),
        (("--data.augment", "crop"), 'unknown data.augment "crop"'),
        (("--data.on_bad_box", "drop"), "on_bad_box"),
        (
            ("--model.problem", "dafw.problems.Classification"),
            "model.problem is Classification, and model.network Detector is for detection: leave out model.problem",
        ),
    ],
)
def test_options_of_classification_are_refused(
    option: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", "CocoDomains", "--data.root", "cameras", "--data.source", "a", "--data.target", "b")
    assert said in refused(capsys, "fit", *DETECTOR, *data, *SHORT, *option)


@pytest.mark.parametrize(
    ("network", "data", "said"),
    [
        (
            DETECTOR,
            ("--data", "Digits", "--data.source", "mnist", "--data.target", "optdigits"),
            "model.problem is Detection, whose labels are boxes with classes, and those of mnist are not: choose data",
        ),
        (
            ("--model", "SourceOnly", "--model.network.backbone", "resnet18"),
            (*("--data", "CocoDomains", "--data.root", "cameras", "--data.source", "a", "--data.target", "b"),),
            "model.problem is Classification, whose labels are one class a sample, and those of a are not: choose data",
        ),
    ],
)
def test_data_of_another_problem_is_refused_before_the_first_step(
    network: tuple[str, ...], data: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "fit", *network, *data, *SHORT[:-2])


def test_a_source_free_teacher_that_finds_nothing_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "CocoDomains", "--data.root", "cameras", "--data.source", "a", "--data.target", "b")
    data += ("--data.size", 32)
    code, _, err = call(capsys, "fit", *DETECTOR, *data, *SHORT, "--run.dir", "run")
    assert code == 0, err
    Path("cameras/a.json").unlink()
    teacher = ("--model", "SourceFreeTeacher", "--model.checkpoint", "run", "--model.threshold", 1, "--model.window", 2)
    short = (*SHORT, "--data.steps_per_epoch", 3, "--trainer.log_every_n_steps", 1, "--data.classes", "[cat, dog]")
    code, _, err = call(capsys, "fit", *teacher, *data, *short, "--run.dir", "adapted")
    assert code == 1
    said = err.splitlines()[-1]
    assert "the teacher found no object above the threshold in the first 2 steps" in said
    assert "lower model.threshold; the last good checkpoint is " in said
