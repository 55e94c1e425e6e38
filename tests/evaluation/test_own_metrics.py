"""Metrics and validators of the user's own: ordinary torchmetrics, and a class path in the run options."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from commands import QUICK, call, one_run, refused
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.wrappers import BootStrapper
from two_ranks import one_and_both

from dafw.errors import UserError
from dafw.methods import Method, SourceOnly
from dafw.metrics import CommonAccuracy
from dafw.problems import Classification, Outputs
from dafw.run.entry import inspect
from dafw.selection import Evidence, Validator
from dafw.testing.toys import ToyData, toy_network, toy_trainer


class Common(Classification):
    """Metrics of torchmetrics as they are, a vector among them, next to one of this project."""

    def metrics(self, num_classes: int, *, class_names: Sequence[str] = (), **_: Any) -> MetricCollection:
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes),
                "recall": MulticlassAccuracy(num_classes, average=None),
                "auroc": MulticlassAUROC(num_classes, thresholds=None),
                "common": CommonAccuracy(num_classes),
            }
        )


def scores(problem: Classification, folder: Path, **data: Any) -> dict[str, dict[str, float]]:
    method: Method = SourceOnly(toy_network(), num_classes=3, problem=problem)
    toy_trainer(folder).test(method, datamodule=ToyData("a", "b", **data), verbose=False)
    return method.evaluator.test


def test_metrics_of_torchmetrics_need_no_adapter(tmp_path: Path) -> None:
    method: Method = SourceOnly(toy_network(), num_classes=3, problem=Common())
    data, trainer = ToyData("a", "b", batch_size=8, steps_per_epoch=4), toy_trainer(tmp_path)
    trainer.fit(method, datamodule=data)
    assert 0 <= method.history[-1]["validators"]["source_accuracy"] <= 1
    assert 0 < method.history[-1]["test"]["b"]["f1"] <= 1
    trainer.test(method, datamodule=data, verbose=False)
    found = method.evaluator.test["b"]
    assert set(found) == {"accuracy", "f1", "auroc", "common", "recall/zero", "recall/one", "recall/two"}
    assert found["accuracy"] == pytest.approx(found["common"])


def outputs(rows: int) -> tuple[Outputs, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 3, generator=generator)
    return Outputs(logits, logits), torch.randint(3, (rows,), generator=generator)


def test_a_rejected_sample_is_a_mistake_for_torchmetrics_too() -> None:
    problem, (found, y) = Classification(), outputs(20)
    metrics = MetricCollection({"accuracy": MulticlassAccuracy(4, average="micro"), "common": CommonAccuracy(3)})
    problem.score(metrics, found, y, torch.where(torch.arange(20) < 10, 1.0, -1.0))
    values = problem.values(metrics)
    assert values["accuracy"] == pytest.approx(values["common"])
    assert values["accuracy"] == pytest.approx(float((found.logits[10:].argmax(1) == y[10:]).sum()) / 20)


def test_a_wrapper_gets_what_torchmetrics_takes() -> None:
    metrics = MetricCollection({"accuracy": BootStrapper(MulticlassAccuracy(3), num_bootstraps=2)})
    Classification().check_metrics(metrics)
    Classification().score(metrics, *outputs(20))
    assert set(Classification().values(metrics)) == {"mean", "std"}


def everything(rank: int, world: int) -> dict[str, float]:
    """The metrics of all batches, which should depend neither on ``world`` nor on which rank has which batch."""
    problem = Common()
    metrics = problem.metrics(3)
    for rows in (5, 9, 4, 7, 8)[rank::world]:
        problem.score(metrics, *outputs(rows))
    return problem.values(metrics, ("zero", "one", "two"))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    one, *ranks = one_and_both(Path(__file__), tmp_path)
    for found in ranks:
        assert found == pytest.approx(one, abs=1e-6)


class Nameless(Common):
    primary: ClassVar[str] = "top"


class Strange(Common):
    def metrics(self, num_classes: int, **_: Any) -> MetricCollection:
        return MetricCollection({"accuracy": MeanMetric()})


class Few(Common):
    def metrics(self, num_classes: int) -> MetricCollection:  # type: ignore[override]
        return super().metrics(num_classes)


class Matrix(Common):
    def metrics(self, num_classes: int, **_: Any) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassConfusionMatrix(num_classes)})


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Nameless(), 'and none is called "top", which tables print: give one this name, or set primary'),
        (Strange(), r"the metric accuracy \(MeanMetric\) needs value in its update, which knows preds, prediction"),
        (Few(), "Few.metrics must take num_classes and class_names"),
        (Matrix(), "the metric accuracy gives 3 x 3 numbers: a metric gives one, or one for each class"),
    ],
)
def test_metrics_that_cannot_be_used_are_named(problem: Classification, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        scores(problem, tmp_path)


class TargetSpread(Validator):
    """How far apart the target's features are; high is good."""

    name: ClassVar[str] = "spread"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence.target_features.double().std(0).mean() ** self.power


class Taken(TargetSpread):
    name: ClassVar[str] = "snd"


class Undirected(Validator):
    name: ClassVar[str] = "undirected"

    def __call__(self, evidence: Evidence) -> Tensor:
        return torch.zeros(())


OWN = f"{__name__}.TargetSpread"


def test_a_validator_of_ones_own_is_recorded_with_its_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    command = ("fit", "--model", "SourceOnly", *QUICK)
    stopping = "[{class_path: EarlyStopping, init_args: {monitor: val/spread, mode: max}}]"
    arguments = ("--run.validators", f"[{{class_path: {OWN}, init_args: {{power: 2.0}}}}]")
    done = call(capsys, *command, *arguments, "--trainer.callbacks", stopping)
    assert done.code == 0, done.err
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert result["higher_is_better"]["spread"] is True
    assert result["history"][-1]["validators"]["spread"] > 0
    assert "val/spread" in (folder / "metrics.csv").read_text().splitlines()[0]
    again = call(capsys, "fit", "--config", folder / "config.yaml")
    assert (again.code, again.err) == (0, "")
    plain = call(capsys, *command)
    assert plain.code == 0, plain.err
    asked = call(capsys, *command, f"--run.validators=[{OWN}]")
    assert asked.code == 0
    assert "the finished run has no spread of run.validators: --run.rerun true makes it again" in asked.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{__name__}.Taken", 'run.validators: the name "snd" of Taken is taken: give it another one'),
        (f"{__name__}.Undirected", "run.validators: Undirected must define name, a text, and higher_is_better"),
        (f"{__name__}.Nowhere", 'test_own_metrics.Nowhere": '),
        ("dafw.methods.DANN", "run.validators: dafw.methods.DANN is not a validator (a subclass of Validator)"),
    ],
)
def test_a_wrong_validator_is_refused(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "fit", "--model", "SourceOnly", *QUICK, f"--run.validators=[{given}]")


def test_a_table_may_select_by_a_validator_of_its_rows() -> None:
    data = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"source": "a", "target": "b"}}
    network = {"class_path": "Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}}
    model = {"class_path": "SourceOnly", "init_args": {"network": network}}
    assert "spread" in inspect({"model": model, "data": data, "run": {"validators": [OWN]}}).scores
    assert "spread" not in inspect({"model": model, "data": data}).scores
