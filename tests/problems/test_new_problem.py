"""A problem that nobody has thought of lands in one file: here one number for each image."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection

from dafw.data import ArrayImages, Domain
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.methods import DANN, SourceOnly
from dafw.nn.network import Network
from dafw.problems import Outputs, Predicted, Problem
from dafw.run.predictions import gather_predictions
from dafw.testing import Case, case, contract
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule


class Brightness(Problem):
    """One number for each image."""

    kind: ClassVar[str] = "regression"
    primary: ClassVar[str] = "mae"

    def terms(self, outputs: Outputs, y: Tensor) -> dict[str, Tensor]:
        return {"supervised": F.mse_loss(outputs.logits[:, 0], y.to(outputs.logits.dtype))}

    def metrics(self, num_classes: int, **_: Any) -> MetricCollection:
        return MetricCollection({"mae": MeanAbsoluteError().set_dtype(torch.float64)})

    def score(self, metrics: MetricCollection, outputs: Outputs, y: Tensor, unknown: Tensor | None = None) -> None:
        metrics.update(outputs.logits[:, 0], y.to(outputs.logits.dtype))

    def predictions(self, outputs: Outputs, unknown: Tensor | None = None) -> dict[str, Any]:
        return {"prediction": outputs.logits[:, 0]}

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        with path.open("w", newline="") as file:
            rows = [zip(one.ids, one.columns["prediction"], strict=True) for one in found]
            csv.writer(file).writerows([row for part in rows for row in part])


class Squares(DomainDataModule):
    """Noise around a level, which is the label; there is nothing to classify."""

    domain_names = ("a", "b")
    class_names = ("level",)

    def load(self, name: str, split: Split) -> Domain:
        rng = np.random.default_rng([len(split), *name.encode()])
        levels = rng.random(40)
        noise = rng.random((40, 6, 6, 3)) - 0.5
        images = 100 * levels[:, None, None, None] + 20 * noise + (80 if name == "a" else 100)
        return Domain(name, ArrayImages(images.astype(np.uint8)), [float(level) for level in levels])


ITEM: Case = case(
    SourceOnly,
    problem=Brightness(),
    network=Network("dafw.testing.toys.ToyNet"),
    data=Squares,
    data_arguments={"source": "a", "target": "b"},
)


def test_it_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network("dafw.testing.toys.ToyNet")
    method = SourceOnly(network, num_classes=1, problem=Brightness(), lr=0.1)
    data = Squares("a", "b", batch_size=8, steps_per_epoch=20)
    trainer = toy_trainer(tmp_path, epochs=3)
    trainer.fit(method, datamodule=data)
    trainer.test(method, datamodule=data, verbose=False)
    assert set(method.evaluator.test["b"]) == {"mae"}
    assert method.evaluator.test["a"]["mae"] < 0.12, "a guess of the mean is 0.25 off"
    assert set(method.history[-1]["validators"]) == {"source_mae", "source_loss"}
    predicted: Any = trainer.predict(method, datamodule=data)
    method.problem.write_predictions(gather_predictions(predicted, data), ["level"], tmp_path / "found.csv")
    lines = list(csv.reader((tmp_path / "found.csv").open()))
    errors = [abs(float(value) - data.load("b", "test").labels[i]) for i, (_, value) in enumerate(lines)]  # type: ignore[index]
    assert lines[0][0] == "b/0"
    assert np.mean(errors) == pytest.approx(method.evaluator.test["b"]["mae"], rel=1e-4)


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    contract.check_label_blind(ITEM, tmp_path)
    assert contract.check_resume([ITEM], tmp_path / "resume") == {ITEM.name: {}}
    assert contract.check_ranks([ITEM], tmp_path / "ranks")[ITEM.name] <= 1e-9
    contract.check_no_stall(ITEM, tmp_path)
    contract.check_batch_free_inference(ITEM, tmp_path)
    contract.check_round_trip(ITEM, tmp_path / "round")
    contract.check_bf16(ITEM, tmp_path)


def test_a_method_for_other_kinds_refuses_it() -> None:
    said = "DANN is a method for classification and segmentation and detection, and model.problem is Brightness"
    with pytest.raises(UserError, match=said):
        DANN(Network("dafw.testing.toys.ToyNet"), num_classes=1, problem=Brightness())
