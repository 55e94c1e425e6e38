"""What an evaluator needs of a method."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.setting import Setting
from dafw.evaluation.columns import TestColumns
from dafw.problems import Problem

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from dafw.evaluation.rejection import Rejection


class ExtraTestMetrics(NamedTuple):
    """A method's own numbers of a test, besides the metrics of each domain.

    Attributes:
        overall: numbers of all targets together, by name.
        by_class: by the name of a class, then by that of the number.
    """

    overall: dict[str, float]
    by_class: dict[str, dict[str, float]]


class Evaluated(Protocol):
    """What an evaluator needs of a method. No part of it takes a label, but for :meth:`extra_test_metrics`."""

    setting: ClassVar[Setting]
    problem: Problem
    num_classes: int
    rejection: "Rejection | None"
    training: bool
    steps_started: int
    history: list[dict[str, Any]]

    @property
    def eval_network(self) -> Any: ...  # noqa: D102
    @property
    def rejects_itself(self) -> bool: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def trainer(self) -> "pl.Trainer": ...  # noqa: D102
    @property
    def datamodule(self) -> Any: ...  # noqa: D102
    def evaluate(self, batch: Batch, source: bool) -> Any: ...  # noqa: D102
    def evaluate_variants(self, batch: Batch, source: bool) -> Mapping[str, Any]: ...  # noqa: D102
    def unknown_scores(self, outputs: Any) -> Tensor | None: ...  # noqa: D102
    def test_columns(self, batch: Batch) -> Mapping[str, Tensor]: ...  # noqa: D102
    @staticmethod
    def extra_test_metrics(  # noqa: D102
        targets: list[TestColumns], class_names: tuple[str, ...]
    ) -> ExtraTestMetrics: ...
    def train(self, mode: bool = True) -> Any: ...  # noqa: D102
    def eval(self) -> Any: ...  # noqa: D102
    def write(self, values: Mapping[str, float]) -> None: ...  # noqa: D102
    @property
    def log_dict(self) -> Callable[..., None]: ...  # noqa: D102
