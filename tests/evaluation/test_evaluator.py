"""The evaluator looks at labels for the method, and passes only what somebody looks at."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dafw.data import Domain
from dafw.data.batch import Batch
from dafw.data.roles import Split
from dafw.methods import DANN, Method, SourceOnly
from dafw.problems import Classification, Outputs, Segmentation
from dafw.run.predictions import gather_predictions
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer

KINDS = ("classification", "segmentation", "detection")


class NoEvidence(Segmentation):
    """Masks that no label-free validator looks at."""

    supports_unsupervised_validators: ClassVar[bool] = False


@pytest.mark.parametrize(("problem", "looked_at"), [(Segmentation(), True), (NoEvidence(), False)])
def test_no_image_of_the_sources_training_split_is_passed_without_a_validator(
    problem: Segmentation, looked_at: bool, tmp_path: Path
) -> None:
    item = case(SourceOnly, kind="segmentation", problem=problem)
    method, data, passed = item.make(), item.make_data(), []
    method.network.backbone.register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    toy_trainer(tmp_path).validate(method, datamodule=data, verbose=False)
    splits = [("a", "val"), ("b", "val"), ("b", "test"), *([("a", "train")] if looked_at else [])]
    assert sum(passed) == sum(len(data.load(name, split)) for name, split in splits)  # type: ignore[arg-type]
    roles = [one.role for one in method.evaluator.evaluations]
    assert ("source_train" in roles) == looked_at


class Blind(SourceOnly):
    """Fails if a label reaches it outside of training."""

    def evaluate(self, batch: Batch, source: bool) -> Any:
        assert batch.y == []
        assert batch.num_source == 0
        return super().evaluate(batch, source)

    def forward_batch(self, batch: Batch, network: Any = None) -> Any:
        assert self.training
        return super().forward_batch(batch, network)


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_reaches_a_method_that_is_evaluated(kind: str, tmp_path: Path) -> None:
    item = case(Blind, kind=kind, ema_decay=0.5)
    method, trainer = item.train(tmp_path)
    data = item.make_data()
    trainer.test(method, datamodule=data, verbose=False)
    trainer.predict(method, datamodule=data)
    assert set(method.evaluator.test) == {"a", "b"}, "the evaluator had the labels"


class Unlabelled(ToyData):
    """Targets without labels, as a user's own ``load`` says."""

    def load(self, name: str, split: Split) -> Domain:
        domain = super().load(name, split)
        return replace(domain, labels=None) if name in self.target else domain


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_without_labels_trains_validates_tests_and_predicts(kind: str, tmp_path: Path) -> None:
    item = replace(case(DANN, kind=kind), data_path=f"{__name__}.Unlabelled")
    method, data = item.make(), Unlabelled("a", "b", kind=kind, batch_size=8, steps_per_epoch=4)
    trainer = toy_trainer(tmp_path)
    trainer.fit(method, datamodule=data)
    trainer.validate(method, datamodule=data, verbose=False)
    assert method.history[-1]["oracle"] == method.history[-1]["test"] == {}
    assert f"source_{method.problem.primary}" in method.history[-1]["validators"]
    trainer.test(method, datamodule=data, verbose=False)
    assert set(method.evaluator.test) == {"a"}
    sizes = {split: len(data.load("b", split)) for split in ("train", "val", "test")}
    for split, count in ((None, sum(sizes.values())), ("test", sizes["test"])):
        data.predict_split = split
        (found,) = gather_predictions(trainer.predict(method, datamodule=data), data)  # type: ignore[arg-type]
        assert len(found.ids) == len(set(found.ids)) == count == len(next(iter(found.columns.values())))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_any_form_pass_the_check_of_label_sets(kind: str) -> None:
    ToyData("a", "b", kind=kind).setup("fit")


class Untouchable(Sequence[Any]):
    """Labels in files that nobody must open."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError(f"label {index} was read")


def test_a_part_of_a_domain_reads_no_label() -> None:
    domain = Domain("a", list(range(40)), Untouchable())
    part = domain.subset(range(0, 40, 2)).subset([3, 1])
    assert len(part.labels or []) == 2
    assert (part.inputs[0], part.id(0)) == (6, "a/6")
    with pytest.raises(AssertionError, match="label 6 was read"):
        _ = part.labels[0]  # type: ignore[index]


class Recalls(Metric):
    """A vector: the share of each class that is found; -1 for the last class, which is said to be undefined."""

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(num_classes, 2), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        for label in range(len(self.hits) - 1):
            chosen = target == label
            self.hits[label] += torch.stack([(chosen & (prediction == label)).sum(), chosen.sum()])

    def compute(self) -> Tensor:
        return torch.cat([self.hits[:-1, 0] / self.hits[:-1, 1], -torch.ones(1)])


class ByClass(Classification):
    """Asks for the names of the classes, and gives a vector."""

    primary: ClassVar[str] = "first"
    undefined: ClassVar[float | None] = -1.0
    named: ClassVar[list[tuple[str, ...]]] = []

    def metrics(self, num_classes: int, *, class_names: Sequence[str] = (), **_: Any) -> MetricCollection:
        self.named.append(tuple(class_names))
        return MetricCollection({"recall": Recalls(num_classes), "first": Recalls(2)})

    def score(self, metrics: MetricCollection, outputs: Outputs, y: Tensor, unknown: Tensor | None = None) -> None:
        metrics["recall"].update(outputs.logits.argmax(1), y)

    def values(self, metrics: MetricCollection, class_names: Sequence[str] = ()) -> dict[str, float]:
        found = super().values(MetricCollection({"recall": metrics["recall"]}), class_names)
        return {**found, "first": found[f"recall/{class_names[0]}"]}


def test_metrics_get_the_names_of_the_classes_and_may_be_vectors_and_undefined(tmp_path: Path) -> None:
    method: Method = SourceOnly(toy_network(), num_classes=3, problem=ByClass())
    toy_trainer(tmp_path).test(method, datamodule=ToyData("a", "b"), verbose=False)
    assert set(ByClass.named) == {("zero", "one", "two")}
    for found in method.evaluator.test.values():
        assert set(found) == {"recall/zero", "recall/one", "recall/two", "first"}
        assert 0 <= found["recall/zero"] <= 1
        assert found["recall/two"] != found["recall/two"], "-1 is no score"
