"""What a run leaves: result, pictures, predictions."""

import csv
import json
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from dafw import plots
from dafw.callbacks import averaging
from dafw.data.domain import Domain
from dafw.methods import Method
from dafw.run.directory import RESULT, SCHEMA_VERSION, config_hash, provenance, write_atomically
from dafw.selection import VALIDATORS
from datamodules.base import DomainDataModule


class Clock(pl.Callback):
    """Seconds spent training and evaluating, over all parts of an interrupted run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds = {"total": 0.0, "train": 0.0, "evaluate": 0.0}
        self._fit = self._evaluation = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Starts the training's clock."""
        self._fit = time.monotonic()

    def on_train_end(self, *_: Any) -> None:
        """Stops it; validations do not count as training."""
        self.seconds["train"] += time.monotonic() - self._fit

    def on_validation_start(self, *_: Any) -> None:
        """Starts the evaluation's clock."""
        self._evaluation = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        """Stops it."""
        spent = time.monotonic() - self._evaluation
        self.seconds["evaluate"] += spent
        self.seconds["train"] -= spent

    def on_test_start(self, *_: Any) -> None:
        """Starts the evaluation's clock."""
        self._evaluation = time.monotonic()

    def on_test_end(self, *_: Any) -> None:
        """Stops it."""
        self.seconds["evaluate"] += time.monotonic() - self._evaluation

    def now(self) -> dict[str, float]:
        """Seconds so far."""
        return {**self.seconds, "total": self.seconds["total"] + time.monotonic() - self.started}

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints, so that a resumed run counts what came before."""
        running = time.monotonic() - self._fit if self._fit else 0.0
        return {**self.now(), "train": self.seconds["train"] + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint's count."""
        self.seconds = {name: float(value) for name, value in state_dict.items()}


def write_result(
    trainer: pl.Trainer, method: Method, data: DomainDataModule, config: dict[str, Any], folder: Path, clock: Clock
) -> dict[str, Any]:
    """Writes ``result.json``, last and at once: its presence means that the run is done.

    ``oracle`` in it: labels of a target trained this run, or the model that a source-free one started from.
    ``transductive_reason``: why a prediction depends on other test samples. ``averaged``: what averaged the weights
    over training, so that none of the validations is of the weights that are tested. ``ranks``: how many made the last
    part of it, which is no part of what the run is, although some methods make another one on several. ``by_class``:
    the method's own numbers of the test, see :meth:`~dafw.evaluation.evaluator.EvaluationSteps.extra_test_metrics`.
    """
    metrics: dict[str, dict[str, float]] = {}
    for key, value in trainer.callback_metrics.items():
        part = key.partition("/dataloader_idx")[0].split("/")
        if part[0] == "test":
            metrics.setdefault(part[1], {})[part[2]] = float(value)
    result = {
        "schema_version": SCHEMA_VERSION,
        "method": type(method).__name__,
        "task": data.task,
        "source": data.source,
        "target": data.target,
        "setting": method.setting.name,
        "seed": config.get("seed_everything", 0),
        "oracle": data.oracle or not set(data.target).isdisjoint(getattr(method, "trained_on", ())),
        "transductive_reason": method.transductive_reason,
        "averaged": " and ".join(averaging(trainer.callbacks)),  # type: ignore[attr-defined]
        "monitors": sorted(
            {monitor for each in trainer.callbacks if isinstance(monitor := getattr(each, "monitor", None), str)}  # type: ignore[attr-defined]
        ),
        "norm": method.norm,
        "ranks": trainer.world_size,
        "config_hash": config_hash(config),
        "steps": method.steps_done,
        "seconds": {name: round(value, 3) for name, value in clock.now().items()},
        "num_target_test": sum(len(data.domain(name, "test")) for name in data.target),
        "metric": method.problem.open_primary if data.has_unknown else method.problem.primary,
        "label_sets": {"kind": data.class_sets.kind, **data.class_sets.counts},
        "undefined": undefined(data),
        "test": metrics,
        "by_class": method.evaluator.extra.by_class,
        "history": method.history,
        "higher_is_better": {
            f"source_{method.problem.primary}": True,
            "source_loss": False,
            f"source_train_{method.problem.primary}": True,
            **{name: validator.higher_is_better for name, validator in VALIDATORS.items()},
        },
        **provenance(),
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=1, allow_nan=True))
    return result


def undefined(data: DomainDataModule) -> dict[str, str]:
    """Targets whose metrics of unknown classes do not exist, and why."""
    found = {}
    for name in data.target if data.has_unknown else []:
        labels = np.asarray(data.domain(name, "test").labels)
        unknown = labels == data.num_classes
        if unknown.all() or not unknown.any():
            lacking = "known" if unknown.all() else "target-private"
            found[name] = f"the test split of {name} has no sample of a {lacking} class"
    return found


@torch.no_grad()
def _outputs(
    method: Method, data: DomainDataModule, domain: Domain, source: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in data.evaluation_loader(domain, shard=False):
        outputs = method.evaluate(batch.to(method.device), source)
        predicted = method.problem.predictions(
            outputs, *(() if source else method.evaluator.open_set.margins(outputs))
        )["prediction"]
        found.append((outputs.features.float().cpu(), predicted.cpu(), batch.y))
    features, predictions, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return features, predictions, labels


def write_plots(method: Method, data: DomainDataModule, folder: Path, most: int = 500) -> list[Path]:
    """Embedding, confusion matrix, training curves and the method's own pictures, as PNG files in ``plots/``."""
    logged = plots.read_metrics(folder / "metrics.csv")
    figures = {"curves": plots.curves({k: v for k, v in logged.items() if not k.startswith("test/")})}
    method.eval()
    if method.problem.supports_unsupervised_validators:
        features, domains, classes = [], [], []
        names = (*data.known_names, *(["unknown"] if data.has_unknown or method.evaluator.open_set.rejects else []))
        matrix = np.zeros((len(names), len(names)), np.int64)
        for name in (*data.sources, *data.target):
            domain = data.domain(name, "test")
            part = domain.subset(range(0, len(domain), max(1, -(-len(domain) // most))))
            found, predictions, labels = _outputs(method, data, part, name in data.sources)
            features.append(found)
            domains += [name] * len(part)
            classes += labels.tolist()
            if name in data.target:
                np.add.at(matrix, (labels, predictions), 1)
        figures["embedding"] = plots.embedding(np.concatenate(features), domains, classes, class_names=names)
        figures["confusion"] = plots.confusion(matrix, names)
    figures |= method.pictures(data)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / "plots" / f"{name}.png")
        plots.save(figure, paths[-1])
    return paths


Predictions = list[list[dict[str, Any]]]


def gather_predictions(predicted: list[Any], data: DomainDataModule) -> Predictions:
    """The batches of each target, those of all ranks together.

    Args:
        predicted: what ``Trainer.predict`` returned: batches of one loader, or of each of several.
        data: whose targets were predicted.
    """
    own: Predictions = [predicted] if len(data.target) == 1 else predicted
    if not torch.distributed.is_initialized():
        return own
    shares: list[Predictions] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, own)
    return [[batch for share in shares for batch in share[position]] for position in range(len(data.target))]


def write_predictions(predicted: Predictions, data: DomainDataModule, path: Path) -> None:
    """A CSV file with one line per target test sample: domain, sample, prediction, one probability per class.

    Of a method that rejects samples also ``unknown``, the margin by which it does, and ``unknown`` is a prediction.

    Args:
        predicted: batches of each target.
        data: whose targets were predicted.
        path: the file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = (*data.known_names, "unknown")
    margins = ["unknown"] if any("unknown" in batch for batches in predicted for batch in batches) else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["domain", "sample", "prediction", *margins, *(f"p_{name}" for name in data.known_names)])
        for name, batches in zip(data.target, predicted, strict=True):
            domain = data.domain(name, "test")
            keys = ["index", "prediction", *margins, "probabilities"]
            columns = [chain.from_iterable([batch[key].tolist() for batch in batches]) for key in keys]
            for index, prediction, *margin, shares in sorted(zip(*columns, strict=True)):
                numbers = [f"{number:.6f}" for number in (*margin, *shares)]
                writer.writerow([name, domain.id(index), names[prediction], *numbers])
