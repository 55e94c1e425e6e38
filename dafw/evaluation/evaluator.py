"""Validation, test and prediction, the same for all methods: metrics of each domain, label-free validators, oracle."""

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.evaluation.open_set import UnknownClasses
from dafw.nn.distributed import gather_unequal
from dafw.problems import Outputs, Problem
from dafw.selection import VALIDATORS, Evidence

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from matplotlib.figure import Figure

    from datamodules.base import DomainDataModule, Evaluation

    Base = pl.LightningModule
else:
    Base = object


class ExtraTestMetrics(NamedTuple):
    """What a method's own numbers of a test are, beside the metrics of each domain.

    Attributes:
        overall: of all targets together, by name.
        by_class: by the name of a class, then by that of the number.
    """

    overall: dict[str, float]
    by_class: dict[str, dict[str, float]]


class EvaluationSteps(UnknownClasses, Base):
    """Lightning's evaluation hooks. ``evaluations`` says what each loader holds; target labels stay in here."""

    #: What the method may see: adaptation, generalization, source-free, test-time.
    setting: ClassVar[str] = ""
    problem: Problem
    num_classes: int
    history: list[dict[str, Any]]
    adapts_in_test: bool
    steps_started: int
    evaluations: "list[Evaluation]"
    metrics: nn.ModuleList
    source_losses: nn.ModuleDict
    collected: list[list[tuple[Tensor, Tensor, Tensor]]]
    extra_metrics: ExtraTestMetrics

    if TYPE_CHECKING:

        def write(self, values: dict[str, float]) -> None: ...  # noqa: D102
        def flush(self) -> None: ...  # noqa: D102
        def forward_rows(self, x: Any, num_source: int | None, network: nn.Module | None = None) -> Outputs: ...  # noqa: D102
        @property
        def eval_network(self) -> nn.Module: ...  # noqa: D102

    @property
    def supports_unsupervised_validators(self) -> bool:
        """Whether there is something for the label-free validators to look at: not where no target may be seen."""
        return self.problem.supports_unsupervised_validators and self.setting != "generalization"

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """Outputs of one evaluation batch of a source or a target domain, as they are served."""
        return self.forward_rows(batch.x, len(batch) if source else 0, self.eval_network)

    # ---- the two evaluations

    def start_evaluation(self, stage: Any) -> None:
        """New metrics and empty evidence for each loader of ``stage``."""
        self.flush()
        self.evaluations = self.trainer.datamodule.evaluations(stage)  # type: ignore[attr-defined]
        self.metrics = nn.ModuleList(map(self.new_metrics, self.evaluations)).to(self.device)
        validated = [str(i) for i, evaluation in enumerate(self.evaluations) if evaluation.role == "source_val"]
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.source_losses = nn.ModuleDict({key: MeanLoss(dtype) for key in validated}).to(self.device)
        self.collected, self.known_logits = [[] for _ in self.evaluations], []

    def on_validation_start(self) -> None:
        """See :meth:`start_evaluation`."""
        self.start_evaluation("validate")

    def on_test_start(self) -> None:
        """See :meth:`check_gradients`, :meth:`check_threshold` and :meth:`start_evaluation`."""
        self.check_gradients()
        self.check_threshold()
        self.start_evaluation("test")

    def on_predict_start(self) -> None:
        """See :meth:`check_gradients` and :meth:`check_threshold`."""
        self.check_gradients()
        self.check_threshold()

    def check_gradients(self) -> None:
        """Asks for what a method that learns while it is tested needs; the command line sees to it.

        Raises:
            UserError: if the trainer allows no gradients.
        """
        if self.adapts_in_test and torch.is_inference_mode_enabled():
            raise UserError(f"{type(self).__name__} learns from what it is tested on: Trainer(inference_mode=False)")

    def evaluation_step(self, batch: Batch, dataloader_idx: int) -> None:
        """Scores one batch where it has labels, and keeps what the validators need."""
        role = self.evaluations[dataloader_idx].role
        outputs = self.evaluate(batch, role.startswith("source"))
        if batch.num_source:
            self.score(self.metrics[dataloader_idx], role, outputs, batch.y)  # type: ignore[arg-type]
        if role == "source_val":
            self.source_losses[str(dataloader_idx)].update(self.problem.loss(outputs, batch.y), len(batch))  # type: ignore[operator]
        if self.supports_unsupervised_validators and role in ("source_train", "source_val", "target_val"):
            keys = torch.stack([batch.index, batch.y if role == "source_val" else batch.index])
            self.collected[dataloader_idx].append((outputs.features, outputs.logits, keys))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """See :meth:`evaluation_step`."""
        self.evaluation_step(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """See :meth:`evaluation_step`."""
        self.evaluation_step(batch, dataloader_idx)

    def metrics_of(self, position: int) -> dict[str, float]:
        """The metrics of one evaluation loader, over all ranks."""
        scores = self.metrics[position]
        assert isinstance(scores, MetricCollection)
        return {name: float(value) for name, value in scores.compute().items()}

    def on_validation_epoch_end(self) -> None:
        """Logs source accuracy and loss, the validators, and, marked ``oracle/``, what target labels say."""
        primary = self.problem.primary
        roles = ("source_train_labelled", "source_val", "target_val", "target_test")
        found: dict[str, dict[str, dict[str, float]]] = {role: {} for role in roles}
        for position, evaluation in enumerate(self.evaluations):
            if evaluation.role in found:
                found[evaluation.role][evaluation.domain.name] = self.metrics_of(position)
        validators = {}
        if found["source_val"]:
            losses = [float(metric.compute()) for metric in self.source_losses.values()]  # type: ignore[operator]
            validators = {
                f"source_{primary}": _mean(found["source_val"], primary),
                "source_loss": sum(losses) / len(losses),
            }
        if found["source_train_labelled"]:
            validators[f"source_train_{primary}"] = _mean(found["source_train_labelled"], primary)
        if self.supports_unsupervised_validators:
            validators |= self.validate_without_labels()
        shown = self.problem.open_primary if self.trainer.datamodule.has_unknown else primary  # type: ignore[attr-defined]
        oracle = {shown: _mean(found["target_val"], shown)}
        values = {f"val/{name}": value for name, value in validators.items()}
        values |= {f"oracle/{name}": value for name, value in oracle.items()}
        values |= {f"oracle/test/{n}/{k}": v for n, m in found["target_test"].items() for k, v in m.items()}
        self.collected = []
        self.log_dict(values, sync_dist=False, rank_zero_only=False, logger=False)
        if self.trainer.state.fn == "fit":
            self.write(values)
            entry = {"validators": validators, "oracle": oracle, "test": found["target_test"]}
            self.history = [h for h in self.history if h["step"] != self.steps_started]
            self.history.append({"step": self.steps_started, **entry})

    def validate_without_labels(self) -> dict[str, float]:
        """Every label-free validator, on the source's and the target's validation splits; those that there are."""
        train, source, target = (self.gather(role) for role in ("source_train", "source_val", "target_val"))
        evidence = Evidence(
            source_train_features=train[0],
            source_features=source[0],
            source_logits=source[1],
            source_labels=source[2][1],
            target_features=target[0],
            target_logits=target[1],
        )
        present = {name: make() for name, make in VALIDATORS.items() if len(source[0]) or not make.needs_source}
        return {name: float(validator(evidence)) for name, validator in present.items()}

    def gather(self, role: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits and (index, label) of all samples of ``role``, in their domains' order, on every rank.

        Empty where there are none.
        """
        parts = []
        for evaluation, batches in zip(self.evaluations, self.collected, strict=True):
            if evaluation.role == role:
                found = [torch.cat(values, -1 if i == 2 else 0) for i, values in enumerate(zip(*batches, strict=True))]
                found = [gather_unequal(value, -1 if i == 2 else 0) for i, value in enumerate(found)]
                order = found[2][0].argsort()
                parts.append((found[0][order], found[1][order], found[2][:, order]))
        if not parts:
            return torch.empty(0, 0), torch.empty(0, 0), torch.empty(2, 0, dtype=torch.int64)
        features, logits, keys = (list(values) for values in zip(*parts, strict=True))
        return torch.cat(features), torch.cat(logits), torch.cat(keys, 1)

    def on_test_epoch_end(self) -> None:
        """Logs each domain's metrics on its test split, and :meth:`extra_test_metrics` with each target."""
        values = {
            f"test/{evaluation.domain.name}/{name}": value
            for position, evaluation in enumerate(self.evaluations)
            for name, value in self.metrics_of(position).items()
        }
        self.extra_metrics = self.extra_test_metrics()
        for evaluation in self.evaluations:
            if evaluation.role == "target_test":
                values |= {
                    f"test/{evaluation.domain.name}/{n}": value for n, value in self.extra_metrics.overall.items()
                }
        self.log_dict(values, logger=False)
        self.write(values)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Columns of the prediction file for one batch of a target."""
        outputs = self.evaluate(batch, source=False)
        return {"index": batch.index, **self.problem.predictions(outputs, *self.margins(outputs))}

    # ---- what a method shows beside that

    def extra_test_metrics(self) -> ExtraTestMetrics:
        """The method's own numbers of a test, asked for once after the last target, on all ranks alike."""
        return ExtraTestMetrics({}, {})

    def pictures(self, data: "DomainDataModule") -> "dict[str, Figure]":
        """More figures of a finished run by name, of the weights that are evaluated; rank 0 alone asks for them.

        Args:
            data: whose test splits may be shown.
        """
        return {}


class MeanLoss(Metric):
    """A mean over the samples of batches, and over all ranks; updating it never waits for the device.

    Args:
        dtype: of the sums.
    """

    total: Tensor
    count: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Adds the mean loss of a batch of so many samples."""
        self.total += samples * loss
        self.count += samples

    def compute(self) -> Tensor:
        """The mean; nan without a sample."""
        return self.total / self.count


def _mean(metrics: dict[str, dict[str, float]], name: str) -> float:
    return sum(values[name] for values in metrics.values()) / len(metrics)
