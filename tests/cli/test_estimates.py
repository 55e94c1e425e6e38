"""What a run keeps of its source, and the estimates of its accuracy that it records and prints."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import PLAIN, QUICK, call
from PIL import Image

from dafw.estimation import ESTIMATORS, SourceEvidence
from dafw.run.directory import EVIDENCE
from dafw.run.result import RESULT, read_result

ALONE = {name for name, kind in ESTIMATORS.items() if not kind.needs_models}


def trained(capsys: pytest.CaptureFixture[str], name: str, *arguments: object, method: str = "SourceOnly") -> Path:
    done = call(capsys, "fit", "--model", method, *QUICK, "--run.wandb", "disabled", "--run.dir", name, *arguments)
    assert done.code == 0, done
    return Path(name)


def test_a_run_keeps_the_outputs_for_its_sources_test_split(capsys: pytest.CaptureFixture[str]) -> None:
    import dafw
    from dafw.testing.toys import ToyData

    run = trained(capsys, "run", "--data.source", "[a, c]", "--data.batch_size", "4")
    kept = SourceEvidence.read(run / EVIDENCE)
    assert (kept.domains, kept.classes, kept.held_out, kept.start_model) == (
        ("a", "c"),
        ("zero", "one", "two"),
        True,
        False,
    )
    data = ToyData(["a", "c"], "b")
    domains = [data.domain(name, "test") for name in "ac"]
    assert kept.labels.tolist() == [int(label) for one in domains for label in one.labels]
    images = torch.stack([one.inputs[index] for one in domains for index in range(len(one))])
    loaded = dafw.load(run)
    with torch.no_grad():
        outputs = loaded.method.forward_rows(images, len(images), loaded.method.eval_network)
    assert np.allclose(kept.logits, outputs.logits, atol=1e-5)
    assert np.allclose(kept.features, outputs.features, atol=1e-5)
    assert len(set(kept.samples.tolist())) == len(kept)
    accuracy = [(kept.logits.argmax(1) == kept.labels)[rows].mean() for rows in (slice(21), slice(21, 42))]
    result = read_result(run)
    assert result is not None
    assert accuracy == pytest.approx([result.test[name]["accuracy"] for name in "ac"])


def test_a_result_records_estimates_and_no_label_of_the_target_enters(capsys: pytest.CaptureFixture[str]) -> None:
    longer = ("--data.steps_per_epoch", "20")
    run = trained(capsys, "run", *longer)
    garbage = trained(capsys, "garbage", *longer, "--data.garbage", "true")
    kept = [(one / EVIDENCE).read_bytes() for one in (run, garbage)]
    assert kept[0] == kept[1]
    found = [json.loads((one / RESULT).read_text()) for one in (run, garbage)]
    assert found[0]["test"]["b"] != found[1]["test"]["b"], "the labels are others"
    assert found[0]["estimates"] == found[1]["estimates"]
    assert set(found[0]["estimates"]) == {"b"}
    assert set(found[0]["estimates"]["b"]) == ALONE
    for one in found[0]["estimates"]["b"].values():
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1


def test_a_test_of_a_checkpoint_finds_the_same_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(capsys, "run")
    assert call(capsys, "test", run, "--output", "again.json").code == 0
    assert (
        json.loads(Path("again.json").read_text())["estimates"] == json.loads((run / RESULT).read_text())["estimates"]
    )


@pytest.mark.parametrize("method", ["SHOT", "Tent"])
def test_a_method_without_a_source_has_the_start_models_evidence(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    start = trained(capsys, "start")
    run = trained(capsys, "run", "--model.checkpoint", start, method=method)
    kept, before = (SourceEvidence.read(one / EVIDENCE) for one in (run, start))
    assert kept.start_model
    assert not before.start_model
    assert np.array_equal(kept.logits, before.logits)
    result = read_result(run)
    assert result is not None
    assert set(result.estimates["b"]) == ALONE
    (start / EVIDENCE).unlink()
    without = trained(capsys, "without", "--model.checkpoint", start, method=method)
    assert not (without / EVIDENCE).exists()
    found = read_result(without)
    assert found is not None
    assert found.estimates == {}


def test_a_run_that_is_made_again_keeps_nothing_of_the_old_one(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(capsys, "run")
    from dafw.run.directory import discard

    discard(run)
    assert not (run / EVIDENCE).exists()


# ---- the command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of other seeds, and the images of their domains."""
    from dafw.cli import main

    folder, random = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for domain, scale in (("a", 90), ("b", 60)):
        for code, label in enumerate(("cat", "dog")):
            for number in range(60):
                path = folder / "data" / domain / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.normal(60 + scale * code, 20, (10, 9 + code, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    data = (
        *("--data", "ImageFolderDomains", "--data.root", "data", "--data.source", "a", "--data.target", "b"),
        *("--data.split", "[0.5, 0.1, 0.4]", "--data.size", "6", "--data.resize", "8"),
    )
    more = ("--data.batch_size", "4", "--data.steps_per_epoch", "20")
    network = ("--model.network.backbone", "dafw.testing.toys.ToyNet")
    fit = ("fit", "--model", "SourceOnly", *network, *data, *more, *PLAIN, "--trainer.max_epochs", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for seed in "012":
            assert main([*fit, "--run.wandb", "disabled", "--seed_everything", seed, "--run.dir", f"run{seed}"]) == 0
    return folder


@pytest.fixture
def runs(made: Path, workplace: Path) -> Path:
    """Them, in this test's working directory."""
    shutil.copytree(made, workplace, dirs_exist_ok=True)
    return workplace


def found(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text()))


def test_the_table_for_a_folder_with_other_runs(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    import dafw

    shutil.move("data", "kept")
    Path("kept/b/cat/broken.png").write_bytes(b"no image")
    others = ("--with", "run1", "run2", "--output", "e.json")
    done = call(capsys, "estimate", "run0", "--images", "kept/b", *others)
    assert done.code == 0, done
    lines = done.out.splitlines()
    kept = len(SourceEvidence.read(Path("run0", EVIDENCE)))
    assert lines[0] == f"images: 120 images, {kept} held-out source samples"
    for text in ("average confidence (ac)", "agreement of seeds (gde)", "(aline_d)", "drift of the predicted"):
        assert text in done.out
    assert "not that an assumption fails" in done.out
    Path("data").symlink_to("kept")  # which the datamodule of a loaded run looks for
    assert done.err.count("dafw: skipped: ") == 3, "each of the three runs says it"
    written = found("e.json")["images"]["images"]
    assert set(written["estimates"]) == set(ESTIMATORS)
    paths = sorted(str(one) for one in Path("kept/b").rglob("*.png") if one.name != "broken.png")
    first, *rest = (dafw.load(f"run{seed}") for seed in "012")
    report = first.estimate(paths, others=rest)
    assert report.samples == written["samples"] == 120
    for name, one in report.estimates.items():
        assert one.value == pytest.approx(written["estimates"][name]["value"], abs=1e-4, nan_ok=True)
    assert set(report.shift) == set(written["shift"])
    said = [one.predict(paths).classes for one in (first, *rest)]
    agree = [sum(a == b for a, b in zip(said[0], one, strict=True)) / len(paths) for one in said[1:]]
    assert report.estimates["gde"].value == pytest.approx(sum(agree) / 2)


def test_the_targets_of_a_run_are_what_a_result_records(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    done = call(capsys, "estimate", "run0", "--output", "e.json")
    assert done.code == 0, done
    written, recorded = found("e.json")["images"], found("run0/result.json")["estimates"]
    assert set(written) == {"b"}
    for name, one in recorded["b"].items():
        assert one["value"] == pytest.approx(written["b"]["estimates"][name]["value"], abs=1e-6)


def test_images_of_another_kind_are_warned_of(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    for number in range(60):
        shade = np.full((10, 10, 3), 250 - number % 5, np.uint8)
        Path("white").mkdir(exist_ok=True)
        Image.fromarray(shade).save(f"white/{number}.png")
    for command in ("estimate", "predict"):
        done = call(capsys, command, "run0", "--images", "white", "--output", f"{command}.out")
        assert done.code == 0, done
        assert "dafw: warning: images: these images differ from the held-out source images in" in done.err, command
        assert done.err.count("label about 100 of them") == 1
    same = call(capsys, "predict", "run0", "--images", "data/a", "--output", "same.csv")
    assert (same.code, same.err) == (0, "")


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    done = call(capsys, "estimate", *arguments)
    assert (done.code, done.err.count("dafw: error: "), done.err.count("Traceback")) == (2, 1, 0), done
    return done.err.partition("dafw: error: ")[2].rstrip("\n")


def test_what_no_estimate_can_be_made_of_is_one_sentence(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    Path("empty").mkdir()
    assert "holds no images" in failed(capsys, "run0", "--images", "empty")
    Path("empty/a.png").write_bytes(b"no image")
    assert "none of the 1 files of --images can be read" in failed(capsys, "run0", "--images", "empty")
    assert "not both" in failed(capsys, "run0", "--images", "data/b", "--split", "all")
    (kept,) = Path("run0/checkpoints").glob("*.ckpt")
    shutil.copy(kept, kept.with_name("step=5.ckpt"))
    assert "step=5.ckpt is an earlier checkpoint" in failed(capsys, "run0/checkpoints/step=5.ckpt")
    assert "there is no run other" in failed(capsys, "run0", "--with", "other")
    whole = Path("run0", EVIDENCE).read_bytes()
    Path("run0", EVIDENCE).write_bytes(whole[:100])
    assert "damaged: make its run again" in failed(capsys, "run0")
    one = SourceEvidence(np.ones((3, 1), np.float32), np.zeros(3, np.int64), np.arange(3), np.ones((3, 2), np.float32))
    one.write(Path("run0", EVIDENCE))
    assert "two classes or more" in failed(capsys, "run0")
    Path("run0", EVIDENCE).unlink()
    assert "keeps nothing of its source" in failed(capsys, "run0")
    predicted = call(capsys, "predict", "run0", "--output", "p.csv")
    assert (predicted.code, predicted.err) == (0, "")
    Path("run0/result.json").unlink()
    assert "run0 is not finished" in failed(capsys, "run0")


def test_an_earlier_checkpoint_serves_the_estimators_of_two_models(
    capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    (kept,) = Path("run0/checkpoints").glob("*.ckpt")
    shutil.copy(kept, kept.with_name("step=5.ckpt"))
    done = call(capsys, "estimate", "run0", "--with", kept.with_name("step=5.ckpt"), "run1", "--output", "e.json")
    assert done.code == 0, done
    estimates = found("e.json")["images"]["b"]["estimates"]
    assert "does not exist" in done.out
    assert np.isnan(estimates["aline_s"]["value"])
    assert 0.5 <= estimates["gde"]["value"] <= 1


def test_masks_are_not_offered(capsys: pytest.CaptureFixture[str], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dafw.problems import Classification

    monkeypatch.setattr(Classification, "estimates_accuracy", False)
    monkeypatch.setattr(Classification, "kind", "segmentation")
    assert "segmentation: masks and boxes are not offered" in failed(capsys, "run0")
