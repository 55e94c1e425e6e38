"""Runs whose target has classes of its own: what is refused, what is written down, what the threshold rests on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK, call, one_run, refused, rows

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.methods import SourceOnly
from dafw.testing.toys import ToyData
from datamodules.label_sets import LabelSets

SETS = {"common": ["one"], "source_private": ["zero"], "target_private": ["two"]}
OPEN = ("--model", "SourceOnly", *QUICK, "--data.label_sets", json.dumps(SETS))
ENTROPY = (*OPEN, "--model.rejection", "Entropy")


def fit(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    done = call(capsys, "fit", *arguments)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads((one_run(Path("runs")) / "result.json").read_text()) | {"printed": done.out}
    return found


def served() -> tuple[SourceOnly, ToyData]:
    method = SourceOnly.load(str(next(one_run(Path("runs")).glob("checkpoints/*.ckpt"))))
    return method, ToyData("a", "b", label_sets=LabelSets(**SETS))  # type: ignore[arg-type]


@torch.no_grad()
def logits(method: SourceOnly, domain: Domain, source: bool) -> torch.Tensor:
    return method.forward_rows(
        torch.stack(list(domain.inputs)), len(domain) if source else 0, method.eval_network
    ).logits


def test_a_method_that_rejects_nothing_is_refused(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    sentence = refused(capsys, "fit", *OPEN)
    assert sentence == (
        "the target has classes that the source lacks (data.label_sets), and SourceOnly rejects nothing: give "
        "model.rejection, such as Entropy"
    )


def test_a_class_called_unknown_is_refused_where_a_method_rejects(
    capsys: pytest.CaptureFixture[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyData, "class_names", ("zero", "unknown", "two"))
    for sets in ("closed", json.dumps({"common": ["unknown"], "target_private": ["two"]})):
        more = ("--data.label_sets", sets, "--model.rejection", "Entropy")
        sentence = refused(capsys, "fit", "--model", "SourceOnly", *QUICK, *more)
        assert sentence == (
            'a class of the source is called "unknown", which is what a sample that SourceOnly rejects is called: give '
            "the class another name, or leave it out (data.label_sets)"
        )
    assert call(capsys, "fit", "--model", "SourceOnly", *QUICK).code == 0


def test_a_run_on_a_universal_task(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    result = fit(capsys, *ENTROPY, "--run.plots", "true")
    assert result["metric"] == "h_score"
    assert result["label_sets"] == {"kind": "universal", "common": 1, "source_private": 1, "target_private": 1}
    assert result["undefined_reason"] == {}
    assert set(result["test"]["a"]) == {"accuracy", "mean_class_accuracy"}
    assert {"h_score", "h_score_class_mean", "os", "os_star", "unknown_accuracy", "auroc", "fpr95"} < set(
        result["test"]["b"]
    )
    assert set(result["history"][-1]["oracle"]) == {"h_score"}
    assert f"b: h_score {result['test']['b']['h_score']:.4f}\n" in result["printed"]
    assert {path.name for path in one_run(Path("runs")).glob("plots/*.png")} > {"confusion.png", "embedding.png"}
    method, data = served()
    target = data.domain("b", "test")
    scores = method.unknown_scores(method.forward_rows(torch.stack(list(target.inputs)), 0))
    assert scores is not None
    unknown, labels = (scores > 0).numpy(), np.asarray(target.labels)
    right = unknown[labels == 2].mean()
    assert result["test"]["b"]["unknown_accuracy"] == pytest.approx(right)


SWAD = '[{"class_path": "dafw.callbacks.SWAD", "init_args": {"n_converge": 1, "n_tolerance": 1}}]'
LATE = {
    "the last validation": (),
    "steps after it": ("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"),
    "an average after it": ("--trainer.max_epochs", "3", "--trainer.callbacks", SWAD),
    "no validation": ("--trainer.limit_val_batches", "0"),
    "a moving average": ("--model.ema_decay", "0.5"),
}


@pytest.mark.parametrize("options", LATE.values(), ids=LATE)
def test_the_threshold_is_a_quantile_of_the_sources_validation_samples(
    capsys: pytest.CaptureFixture[str], workplace: Path, options: tuple[str, ...]
) -> None:
    """Of the weights that are served, whichever the last validation was of."""
    fit(capsys, *ENTROPY, "--model.lr", "0.3", "--model.rejection.keep", "0.7", "--data.eval_batch_size", "3", *options)
    method, data = served()
    domain = data.domain("a", "val")
    assert method.rejection is not None
    scores = method.rejection.score(logits(method, domain, source=True))
    assert float(method.rejection.fitted) == pytest.approx(
        float(scores.sort().values[int(np.ceil(0.7 * len(scores))) - 1])
    )
    assert (scores <= method.rejection.fitted).double().mean() >= 0.7


def test_a_threshold_that_was_given_is_taken(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    result = fit(capsys, *ENTROPY, "--model.rejection.threshold", "-1")
    assert result["test"]["b"]["unknown_accuracy"] == 1
    assert result["test"]["b"]["h_score"] == 0
    assert np.isnan(float(served()[0].rejection.fitted))  # type: ignore[union-attr]


def test_a_test_before_any_validation_needs_a_threshold(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    fit(capsys, *ENTROPY, "--model.rejection.threshold", "0.5")
    path = str(next(one_run(Path("runs")).glob("checkpoints/*.ckpt")))
    for command in ("test", "predict"):
        done = call(capsys, command, *ENTROPY, "--ckpt_path", path)
        assert done.code == 2
        assert "model.rejection has no threshold, and no source's validation has fitted one" in done.err
    assert not Path("predictions.csv").exists()


def test_another_rules_threshold_is_not_taken(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    fit(capsys, *ENTROPY)
    path = str(next(one_run(Path("runs")).glob("checkpoints/*.ckpt")))
    other = (*OPEN, "--model.rejection", "Confidence", "--ckpt_path", path)
    for command in ("test", "predict"):
        done = call(capsys, command, *other)
        assert done.code == 2
        assert f"the threshold in {path} is of Entropy, not of Confidence: give model.rejection.threshold" in done.err
    done = call(capsys, "test", *OPEN, "--ckpt_path", path)
    assert done.code == 2
    assert f"{path} rejects by Entropy: give model.rejection" in done.err
    for command, *options in (("validate",), ("test", "--model.rejection.threshold", "0.5")):
        assert call(capsys, command, *other, *options).code == 0


def test_a_source_free_run_must_be_given_its_threshold(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    fit(capsys, *ENTROPY)
    start = ("--model", "SHOT", "--model.checkpoint", one_run(Path("runs")), *ENTROPY[2:], "--run.dir", "shot")
    done = call(capsys, "fit", *start)
    assert done.code == 2
    assert "no sample of the source to fit a threshold to: give model.rejection.threshold" in done.err
    assert not Path("shot").exists()
    done = call(capsys, "fit", *start, "--model.rejection.threshold", "0.5")
    assert done.code == 0, done.err


def test_as_many_classes_are_not_the_same_classes(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    """Outputs are numbered by the label sets, so a model of other ones would take one class for another."""
    fit(capsys, *ENTROPY)
    run = one_run(Path("runs"))
    path = next(run.glob("checkpoints/*.ckpt"))
    sets = json.dumps({"common": ["zero"], "source_private": ["one"], "target_private": ["two"]})
    others = (*ENTROPY, "--data.label_sets", sets)
    said = f'output 0 of {path} is class "one", but "zero" in the data'
    for command in ("validate", "test", "predict"):
        done = call(capsys, command, *others, "--ckpt_path", path)
        assert done.code == 2
        assert said in done.err
    threshold = ("--model.rejection.threshold", "0.5")
    shot = ("--model", "SHOT", "--model.checkpoint", run, *others[2:], *threshold, "--run.dir", "shot")
    done = call(capsys, "fit", *shot)
    assert done.code == 2
    assert said in done.err
    assert not Path("shot").exists()


def test_one_known_class_is_enough(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    sets = json.dumps({"common": 1, "source_private": 0, "target_private": 1})
    result = fit(capsys, *ENTROPY, "--data.label_sets", sets)
    assert result["test"]["a"] == {"accuracy": 1, "mean_class_accuracy": 1}


def test_predictions_name_what_is_unknown(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    result = fit(capsys, *ENTROPY)
    path = str(next(one_run(Path("runs")).glob("checkpoints/*.ckpt")))
    done = call(capsys, "predict", *ENTROPY, "--ckpt_path", path)
    assert done.code == 0, done.err
    table = rows(Path("predictions.csv").read_text())
    assert list(table[0]) == ["domain", "sample", "prediction", "unknown", "p_one", "p_zero"]
    for row in table:
        assert (row["prediction"] == "unknown") == (float(row["unknown"]) > 0)
    target = served()[1].domain("b", "test")
    names = ("one", "zero", "unknown")
    assert len(table) == len(target)
    own = [row["prediction"] == "unknown" for row, label in zip(table, target.labels, strict=True) if label == 2]  # type: ignore[arg-type]
    assert sum(own) / len(own) == pytest.approx(result["test"]["b"]["unknown_accuracy"])
    assert {row["prediction"] for row in table} <= set(names)


def test_a_closed_task_is_said_to_have_nothing_unknown(
    capsys: pytest.CaptureFixture[str], workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = fit(
        capsys, "--model", "SourceOnly", *QUICK, "--model.rejection", "Entropy", "--model.rejection.threshold", "-1"
    )
    assert "the target has no class of its own: what SourceOnly rejects is a mistake" in caplog.text
    assert result["metric"] == "accuracy"
    assert result["test"]["b"]["accuracy"] == 0
    assert result["test"]["a"]["accuracy"] > 0


def test_a_test_set_without_unknown_samples_has_no_h_score(
    capsys: pytest.CaptureFixture[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ToyData.load

    def lacking(self: ToyData, name: str, split: Split) -> Domain:
        domain = load(self, name, split)
        kept = np.flatnonzero(np.asarray(domain.labels) != 2)
        return domain.subset(kept) if (name, split) == ("b", "test") else domain

    monkeypatch.setattr(ToyData, "load", lacking)
    result = fit(capsys, *ENTROPY)
    assert np.isnan(result["test"]["b"]["h_score"])
    assert result["undefined_reason"] == {"b": "the test split of b has no sample of a target-private class"}
    assert "b: h_score nan (the test split of b has no sample of a target-private class)" in result["printed"]
