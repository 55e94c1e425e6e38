"""Detection through the command: what has no part in it is refused in one sentence before anything is written."""

from pathlib import Path

import pytest
from commands import call, one_run, refused

BOXES = (
    *("fit", "--data", "DigitsInScene", "--data.source", "mnist", "--data.target", "optdigits", "--data.size", "32"),
    *("--data.scenes", "[8, 4, 4]", "--data.batch_size", "2", "--data.steps_per_epoch", "1"),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run.plots", "false"),
    *("--model.network", "Detector"),
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model.rejection", "Entropy"), "Detection knows no unknown classes: leave out model.rejection"),
        (
            ("--data.label_sets", "{common: 3, source_private: 2}"),
            "data.label_sets needs one class a sample, and boxes have many: leave it out",
        ),
        (
            ("--data.source_sampling", "class_balanced"),
            "data.source_sampling class_balanced needs one class a sample, and mnist has labels of many parts",
        ),
        (("--model.image_weight", "0"), "model.consistency_weight compares two critics, and one of"),
        (("--model.critic_levels", "eachh"), 'unknown value "eachh": did you mean "each"'),
    ],
)
def test_what_has_no_part_in_boxes_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, *BOXES, "--model", "DAFasterRCNN", *arguments)


@pytest.mark.parametrize("method", ["DCC", "UniOT"])
def test_methods_with_class_balanced_rows_or_unknown_classes_are_for_classes(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    boxes = [part for part in BOXES if part not in ("--model.network", "Detector")]
    said = refused(capsys, *boxes, "--model", method, "--model.network", "Detector", "--model.problem", "Detection")
    assert said == "model.network: Detector is a network, but not one that this method takes"


@pytest.mark.parametrize("arguments", [("--model.strides", "[4]"), ("--model.heavy", "{zoom: 2}")])
def test_settings_of_nsa_are_checked_before_the_first_step(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    said = refused(capsys, *BOXES, "--model", "NSA", *arguments)
    assert said.startswith(("model.strides is [4]", "model.heavy.zoom must be from 0 to 1, not 2"))


def test_the_four_rows_of_source_only_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, (word, average) in enumerate((w, a) for w in ("weak", "strong") for a in ("null", "0.9")):
        folder = tmp_path / str(number)
        done = call(
            capsys,
            *(*BOXES, "--model", "SourceOnly", "--model.problem", "Detection", "--model.norm", "group"),
            *("--data.augment", word, "--model.ema_decay", average, "--run.root", folder),
        )
        assert (done.code, done.err) == (0, "")
        assert (one_run(folder) / "result.json").exists()
