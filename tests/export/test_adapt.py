"""``dafw adapt``: a model and images without labels to an adapted model, the frozen one, and what can be said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, refused
from safetensors.torch import save_file

import dafw
from dafw.api.adapting import compare
from dafw.estimation import SourceEvidence
from dafw.run.directory import EVIDENCE

ONE = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run.wandb", "disabled")


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as an exported model."""
    place = tmp_path_factory.mktemp("start") / "model"
    dafw.load(folder).save_pretrained(place)
    return place


def evidence(count: int = 60) -> SourceEvidence:
    """Of a model of two classes that is right about four of five source images."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    sure = np.where(np.arange(count) % 5 > 0, 2.0, -0.5)
    logits = np.zeros((count, 2), np.float32)
    logits[np.arange(count), labels] = sure + 0.1 * rng.standard_normal(count)
    features = rng.standard_normal((count, 8)).astype(np.float32)
    return SourceEvidence(logits, labels, np.arange(count), features, ("cup", "pen"), ("art",))


@pytest.mark.parametrize(
    ("method", "exported"), [("SHOT", True), ("Tent", False), ("AdaBN", True), ("BatchNormAdapt", True)]
)
def test_a_folder_is_all_it_takes(
    method: str,
    exported: bool,
    model: Path,
    folder: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start, output = model if exported else folder, tmp_path / "adapted"
    further = () if method == "AdaBN" else ONE
    given = ("--images", images / "photo", "--method", method, "--output", output, "--batch_size", "8")
    done = call(capsys, "adapt", start, *given, *further)
    assert done.code == 0, done.err
    said = json.loads((output / "report.json").read_text())
    assert done.out.splitlines()[-2] == said["verdict"]
    assert (said["method"], said["images"]) == (method, 40)
    assert said["better"] in (True, False)
    assert said["verdict"] in (output / "README.md").read_text()
    paths = sorted((images / "photo").rglob("*.png"))
    frozen, adapted = (dafw.from_pretrained(output / name) for name in ("frozen", "model"))
    expected = dafw.load(folder).predict(paths).probabilities
    torch.testing.assert_close(frozen.predict(paths).probabilities, expected, atol=1e-5, rtol=0)
    moved = (adapted.predict(paths).probabilities - expected).abs().max()
    assert moved > 1e-4 or method == "BatchNormAdapt"
    assert "exists already" in refused(capsys, "adapt", start, *given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "DANN"), "DANN trains on labelled images of the source"),
        (("--method", "shot"), 'unknown method "shot": did you mean "SHOT"?'),
        (("--method", "AdaMI"), "AdaMI is for segmentation, and dafw adapt is for classifiers"),
        (("--method", "SHOT", "--images", "nowhere"), "there is no file or folder nowhere"),
        (("--method", "SHOT", "--batch_size", "0"), "--batch_size must be at least 1"),
        (("--method", "SHOT", "--model.lrr", "1"), "lrr"),
    ],
)
def test_what_is_refused(
    options: tuple[str, ...],
    said: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--images", images / "photo", "--output", tmp_path / "adapted", *options)
    assert said in refused(capsys, "adapt", model, *given)
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_trained(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--images", images / "photo", "--method", "SHOT", "--output", tmp_path / "adapted")
    assert "model of timm" in refused(capsys, "adapt", tmp_path / "nowhere.pt", *rest)
    save_file({"fc.weight": torch.zeros(2, 3)}, tmp_path / "weights.safetensors")
    assert "give --backbone" in refused(capsys, "adapt", tmp_path / "weights.safetensors", *rest)
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "other").mkdir()
    for change, said in (
        ({"network": None}, "holds no network that can be trained further"),
        ({"network": {"class_path": "no_such_module.Net", "init_args": {}}}, "say --trust true"),
        ({"network": {"class_path": "dafw.files.Busy", "init_args": {}}}, "is not a part dafw can build"),
    ):
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | change))
        for name in ("model.safetensors", "graph.json"):
            (tmp_path / "other" / name).write_bytes((model / name).read_bytes())
        assert said in refused(capsys, "adapt", tmp_path / "other", *rest)


def test_without_evidence_nothing_can_be_claimed(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "start")
    (tmp_path / "start" / EVIDENCE).unlink()
    given = ("--images", images / "photo", "--method", "AdaBN", "--output", tmp_path / "adapted")
    done = call(capsys, "adapt", tmp_path / "start", *given)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-2].startswith("Nothing can be claimed: the model carries no outputs")
    said = json.loads((tmp_path / "adapted" / "report.json").read_text())
    assert (said["better"], said["frozen"]) == (None, {})


def test_evidence_travels_and_the_estimates_decide(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(model, start)
    evidence().write(start / EVIDENCE)
    given = ("--images", images / "photo", "--method", "AdaBN", "--output", tmp_path / "adapted")
    assert call(capsys, "adapt", start, *given).code == 0
    said = json.loads((tmp_path / "adapted" / "report.json").read_text())
    assert said["frozen"].keys() == said["adapted"].keys() != set()
    assert said["better"] in (True, False)
    assert "[" in (tmp_path / "adapted" / "README.md").read_text()
    assert SourceEvidence.read(tmp_path / "adapted" / "model" / EVIDENCE).start_model
    assert not SourceEvidence.read(tmp_path / "adapted" / "frozen" / EVIDENCE).start_model


def test_it_is_called_better_only_if_all_estimates_say_so() -> None:
    scores = torch.zeros(200, 2)
    unsure, sure = scores.clone(), scores.clone()
    unsure[:, 0], sure[:, 0] = 0.1, 5.0
    kept = evidence(400)
    assert compare(unsure, sure, kept).better is True
    assert compare(sure, sure, kept).better is False
    assert "keep the frozen one" in compare(sure, sure, kept).verdict
    assert "worse" in compare(sure, unsure, kept).verdict
    assert compare(unsure, sure, None).better is None


def test_a_plain_classifier_of_timm(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=2)
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "classes.txt").write_text("cup\npen\n")
    given = ("--images", images / "photo", "--method", "AdaBN", "--output", tmp_path / "adapted")
    named = ("--backbone", "test_resnet", "--classes", tmp_path / "classes.txt")
    done = call(capsys, "adapt", tmp_path / "weights.safetensors", *given, *named)
    assert done.code == 0, done.err
    found = dafw.from_pretrained(tmp_path / "adapted" / "model")
    assert found.class_names == ("cup", "pen")
    assert found.config.shape == (3, 0, 0)
