"""Validation, test and prediction, the same for all methods: metrics of each domain, label-free validators, oracle."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.data.batch import Batch
from dafw.data.domain import Domain
from dafw.data.roles import Evaluation
from dafw.errors import UserError
from dafw.evaluation.columns import TestColumns, evidence_of_all_ranks
from dafw.evaluation.evaluated import Evaluated, ExtraTestMetrics
from dafw.evaluation.for_estimates import ForEstimates, Loader
from dafw.evaluation.mean_loss import MeanLoss
from dafw.evaluation.open_set import OpenSet
from dafw.lightning_adapter import log_and_return
from dafw.nn.distributed import gather_unequal
from dafw.problems import Problem
from dafw.selection import VALIDATORS, Evidence, Validator, together

SOURCE_ROLES = ("source_train", "source_val")
"""The roles whose samples the validators of the source see."""


class Volumes(NamedTuple):
    """What is measured of the samples of one loader that are slices of volumes.

    Attributes:
        metrics: see :meth:`.Problem.volume_metrics`.
        numbers: (n,) int64, the number of the volume of each sample.
    """

    metrics: MetricCollection
    numbers: Tensor


class Evaluator:
    """Scores a method's outputs. Labels reach the evaluator alone: the method gets each batch without them.

    Args:
        method: the method that is evaluated.

    Attributes:
        validators: the label-free validators by name, see :meth:`add_validators`.
        evaluations: the contents of the loaders at work.
        test: the metrics of the last test by domain, then by name.
        extra: the method's own numbers of the last test.
        for_estimates: collects outputs from which accuracy is estimated; ``None`` if it cannot be.
        estimated_files: the number of files that a prediction is of, or 0 for a prediction of targets, if it collects
            outputs as well; ``None``: a prediction collects none.
        num_target_test: number of samples of the targets in the last test, over all ranks.
        file_sizes: height and width of the files of some samples of a loader, by their positions in it, to which
            predictions are scaled; ``None``: they stay as they are.
    """

    def __init__(self, method: Evaluated) -> None:
        self.method = method
        self.open_set = OpenSet(method)
        self.validators: dict[str, Validator] = {name: VALIDATORS[name]() for name in method.problem.validators}
        self.evaluations: list[Evaluation] = []
        self.metrics: list[dict[str, MetricCollection]] = []
        self.volumes: dict[int, Volumes] = {}
        self.source_losses: dict[int, MeanLoss] = {}
        self.collected: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        self.columns: dict[int, list[TestColumns]] = {}
        self.test: dict[str, dict[str, float]] = {}
        self.extra = ExtraTestMetrics({}, {})
        self.for_estimates: ForEstimates | None = None
        self.estimated_files: int | None = None
        self.num_target_test = 0
        self.file_sizes: Callable[[int, list[int]], list[tuple[int, int] | None]] | None = None

    @property
    def problem(self) -> Problem:
        """The method's problem, for outputs of the network that is evaluated."""
        return self.method.problem.bind(self.method.eval_network)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that the method predicts; empty without a datamodule."""
        data = self.method.datamodule
        return () if data is None else tuple(data.known_names)

    @property
    def uses_validators(self) -> bool:
        """Whether label-free validators apply: the problem gives evidence, and training sees the target in epochs."""
        setting = self.method.setting
        return self.problem.supports_unsupervised_validators and setting.sees_target and not setting.streams_target

    @property
    def estimates_accuracy(self) -> bool:
        """Whether accuracy can be estimated without labels: not for masks and boxes, nor where samples are rejected."""
        return self.problem.estimates_accuracy and not self.open_set.may_reject

    @property
    def reads_source(self) -> bool:
        """Whether one of the validators needs samples of the source."""
        return self.uses_validators and any(one.needs_source for one in self.validators.values())

    def add_validators(self, further: Iterable[Validator]) -> None:
        """Lets each validation compute further label-free validators.

        Raises:
            UserError: if one lacks its name or its direction, or has a name that is taken.
        """
        self.validators = together(self.validators.values(), further)

    def check(self, stage: str) -> None:
        """Compares the method and the metrics with the data, before anything is trained or scored.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; a prediction needs no metric.

        Raises:
            UserError: see :meth:`.OpenSet.check` and :meth:`.Problem.check_metrics`.
        """
        self.open_set.check()
        if stage != "predict":
            for is_source in (True, False):
                self.problem.check_metrics(self._new_metrics(is_source), self.open_set.has_unknown and not is_source)

    # ---- the course of an evaluation

    def start(self, stage: str) -> None:
        """Makes new metrics for each loader of ``stage``, and forgets what was collected.

        Args:
            stage: ``validate``, ``test`` or ``predict``; a prediction may have plain loaders and no datamodule.
        """
        data = self.method.datamodule
        self.evaluations = [] if data is None and stage == "predict" else data.evaluations(stage)
        self.metrics = [{} for _ in self.evaluations]
        for position, evaluation in enumerate(self.evaluations):
            if evaluation.is_labelled:
                self._metrics(position, "")
        found = ((position, self._volumes(one.domain)) for position, one in enumerate(self.evaluations))
        self.volumes = {position: volumes for position, volumes in found if volumes is not None}
        dtype = torch.float32 if self.method.device.type == "mps" else torch.float64
        self.source_losses = {
            position: MeanLoss(dtype).to(self.method.device)
            for position, evaluation in enumerate(self.evaluations)
            if evaluation.role == "source_val"
        }
        self.collected, self.columns, self.num_target_test = [[] for _ in self.evaluations], {}, 0
        self.open_set.start()
        collects = stage == "test" or (stage == "predict" and self.estimated_files is not None)
        loaders = list(map(Loader.of, self.evaluations)) or [Loader("", self.estimated_files or 0)]
        self.for_estimates = ForEstimates(loaders) if collects and self.estimates_accuracy else None

    def step(self, batch: Batch, position: int) -> None:
        """Scores one batch where it has labels, and collects what validators and the method's own numbers need.

        Args:
            batch: the batch, with labels if its domain has some.
            position: of its loader.
        """
        role, y = self.evaluations[position].role, batch.y
        self.num_target_test += len(batch) if role == "target_test" else 0
        is_source, is_labelled = self.evaluations[position].is_source, bool(batch.num_source)
        batch = batch.unlabelled(self.evaluations[position].domain)
        variants = self.method.evaluate_variants(batch, is_source)
        outputs = variants[""]
        if role == "source_val" and is_labelled:
            self.open_set.note_source(outputs)
        elif not is_source:
            self.open_set.fit_noted()
        if is_labelled:
            for name, found in variants.items():
                metrics = self._metrics(position, name)
                self.problem.score(metrics, found, y, *(() if is_source else self.open_set.margins(found)))
            if position in self.volumes:
                metrics, numbers = self.volumes[position]
                self.problem.score_volumes(metrics, outputs, y, numbers[batch.index])
        if role == "source_val":
            self.source_losses[position].update(*self.problem.summed_loss(outputs, y))
        if (role == "target_val" and self.uses_validators) or (role in SOURCE_ROLES and self.reads_source):
            self._collect(position, batch, outputs, y if role == "source_val" else None)
        if self.for_estimates is not None and is_labelled >= is_source:
            self.for_estimates.add(position, self.problem.evidence(outputs), batch.index, y if is_source else None)
        if role == "target_test" and is_labelled and (columns := self.method.test_columns(batch)):
            found = TestColumns({**columns}, y, batch.index)
            self.columns.setdefault(position, []).append(found)

    def predict(self, batch: Batch, position: int = 0) -> dict[str, Any]:
        """The columns of the prediction file for one batch of a target.

        Args:
            batch: the batch.
            position: of its loader.
        """
        batch = batch.unlabelled(self.evaluations[position].domain if self.evaluations else None)
        outputs = self.method.evaluate(batch, False)
        if self.for_estimates is not None:
            self.for_estimates.add(position, self.problem.evidence(outputs), batch.index, None)
        sizes = [None] * len(batch) if self.file_sizes is None else self.file_sizes(position, batch.index.tolist())
        return {"index": batch.index, **self.problem.predictions_at(outputs, sizes, *self.open_set.margins(outputs))}

    def finish_validation(self) -> None:
        """Logs source metrics and validators, and, marked ``oracle/``, the metrics that target labels decide."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for position, evaluation in enumerate(self.evaluations):
            if self.metrics[position]:
                found.setdefault(evaluation.role, {})[evaluation.domain.name] = self.metrics_of(position)
        primary, validators = self.problem.primary, {}
        if "source_val" in found:
            losses = [float(loss.compute()) for loss in self.source_losses.values()]
            validators = {
                f"source_{primary}": _mean(found["source_val"], primary),
                "source_loss": sum(losses) / len(losses),
            }
        if "source_train_labelled" in found:
            validators[f"source_train_{primary}"] = _mean(found["source_train_labelled"], primary)
        if self.uses_validators:
            validators |= self._validate_without_labels()
        shown = self.problem.open_primary if self.open_set.has_unknown else primary
        oracle = {shown: _mean(found["target_val"], shown)} if "target_val" in found else {}
        test = found.get("target_test", {})
        values = {f"val/{name}": value for name, value in validators.items()}
        values |= {f"oracle/{name}": value for name, value in oracle.items()}
        values |= {f"oracle/test/{domain}/{k}": v for domain, metrics in test.items() for k, v in metrics.items()}
        self.collected = []
        method = self.method
        if method.trainer.sanity_checking:  # which looks at a few batches alone
            return
        if method.trainer.state.fn != "fit":
            log_and_return(method, values, method.steps_started)
            return
        method.log_dict(values, sync_dist=False, rank_zero_only=False, logger=False)
        method.write(values)
        entry = {"validators": validators, "oracle": oracle, "test": test}
        method.history = [each for each in method.history if each["step"] != method.steps_started]
        method.history.append({"step": method.steps_started, **entry})

    def finish_test(self) -> None:
        """Logs the metrics of each domain's test split, and the method's own numbers with each target."""
        self.test = {
            evaluation.domain.name: self.metrics_of(position)
            for position, evaluation in enumerate(self.evaluations)
            if self.metrics[position]
        }
        count = torch.tensor([self.num_target_test], device=self.method.device)
        self.num_target_test = int(gather_unequal(count).sum())
        targets = [TestColumns.joined(parts).of_all_ranks() for _, parts in sorted(self.columns.items())]
        self.columns = {}
        self.extra = self.method.extra_test_metrics(targets, self.class_names)
        for evaluation in self.evaluations:
            if evaluation.role == "target_test" and evaluation.domain.name in self.test:
                self.test[evaluation.domain.name] |= self.extra.overall
        if self.for_estimates is not None:
            self.for_estimates.gather()
        values = {f"test/{domain}/{name}": v for domain, metrics in self.test.items() for name, v in metrics.items()}
        log_and_return(self.method, values, self.method.steps_started)

    # ---- parts

    def _metrics(self, position: int, variant: str) -> MetricCollection:
        """The metrics of one loader and variant; only a target's samples are rejected, or of unknown classes."""
        if variant not in self.metrics[position]:
            self.metrics[position][variant] = self.new_metrics(self.evaluations[position]).to(self.method.device)
        return self.metrics[position][variant]

    def new_metrics(self, evaluation: Evaluation) -> MetricCollection:
        """New metrics for the samples of one loader."""
        return self._new_metrics(evaluation.is_source)

    def _new_metrics(self, is_source: bool) -> MetricCollection:
        return self._metrics_like(self.class_names, is_source, self.open_set.has_unknown)

    def _metrics_like(self, class_names: tuple[str, ...], is_source: bool, has_unknown: bool) -> MetricCollection:
        target = not is_source
        said = {"rejects": target and self.open_set.rejects, "has_unknown": target and has_unknown}
        options = {name: True for name, holds in said.items() if holds}
        problem = self.problem
        given: dict[str, Any] = {"class_names": class_names, **options}
        try:
            signature(problem.metrics).bind(self.method.num_classes, **given)
        except TypeError as error:
            raise UserError(f"{type(problem).__name__}.metrics must take num_classes and {', '.join(given)}") from error
        return problem.metrics(self.method.num_classes, **given)

    def metric_names(self, class_names: tuple[str, ...], has_unknown: bool) -> tuple[str, ...]:
        """The names of a target's metrics; empty if a metric cannot tell its names before it has seen a sample.

        Args:
            class_names: names of the classes that the method predicts.
            has_unknown: whether the target has classes of its own.
        """
        with warnings.catch_warnings(), suppress(Exception):  # whatever a metric of another author raises
            warnings.simplefilter("ignore")
            return tuple(self.problem.values(self._metrics_like(class_names, False, has_unknown), class_names))
        return ()

    def metrics_of(self, position: int) -> dict[str, float]:
        """The metrics of one loader, over all ranks. The name of a variant follows that of the metric."""
        found = {
            f"{name}{variant}": value
            for variant, metrics in self.metrics[position].items()
            for name, value in self.problem.values(metrics, self.class_names).items()
        }
        if position in self.volumes:
            found |= self.problem.values(self.volumes[position].metrics, self.class_names)
        return found

    def _volumes(self, domain: Domain) -> Volumes | None:
        """The further metrics of a labelled domain whose samples are slices of volumes."""
        if domain.volumes is None or domain.labels is None:
            return None
        names, numbers = np.unique(np.asarray(domain.volumes), return_inverse=True)
        metrics = self.problem.volume_metrics(self.method.num_classes, len(names))
        device = self.method.device
        return None if metrics is None else Volumes(metrics.to(device), torch.from_numpy(numbers).to(device))

    def _collect(self, position: int, batch: Batch, outputs: Any, y: Any) -> None:
        features, logits, sample = self.problem.evidence(outputs)
        labels = None if y is None else self.problem.evidence_labels(outputs, y)
        index = batch.index[sample]
        keys = torch.stack([index, index if labels is None else labels])
        self.collected[position].append((features, logits, keys))

    def _validate_without_labels(self) -> dict[str, float]:
        """Every label-free validator on the validation splits of source and target."""
        train, source, target = (self._gather(role) for role in (*SOURCE_ROLES, "target_val"))
        if (ignored := self.problem.ignore_index) is not None:
            labelled = source[2][1] != ignored
            source = source[0][labelled], source[1][labelled], source[2][:, labelled]
        evidence = Evidence(
            source_train_features=train[0],
            source_features=source[0],
            source_logits=source[1],
            source_labels=source[2][1],
            target_features=target[0],
            target_logits=target[1],
            target_samples=sum(len(one.domain) for one in self.evaluations if one.role == "target_val"),
        )
        present = {name: one for name, one in self.validators.items() if len(source[0]) or not one.needs_source}
        return {name: float(validator(evidence)) for name, validator in present.items()}

    def _gather(self, role: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits and (index, label) of all samples of ``role``, in their domains' order, on every rank.

        Empty where there are none.
        """
        parts = []
        for position, evaluation in enumerate(self.evaluations):
            if evaluation.role == role and (role not in SOURCE_ROLES or self.reads_source):
                parts.append(evidence_of_all_ranks(self.collected[position]))
        if not parts:
            return torch.empty(0, 0), torch.empty(0, 0), torch.empty(2, 0, dtype=torch.int64)
        if len(parts) == 1:
            return parts[0]
        features, logits, keys = (list(values) for values in zip(*parts, strict=True))
        return torch.cat(features), torch.cat(logits), torch.cat(keys, 1)


def _mean(metrics: dict[str, dict[str, float]], name: str) -> float:
    if lacking := [values for values in metrics.values() if name not in values]:
        raise UserError(f'the problem\'s metrics are {", ".join(lacking[0])}, and none is "{name}", which tables print')
    return sum(values[name] for values in metrics.values()) / len(metrics)
