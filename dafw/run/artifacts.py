"""What a finished run leaves: its result, and its pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dafw import plots
from dafw.callbacks import averaging
from dafw.data.domain import Domain
from dafw.errors import sentence, warn
from dafw.methods import Method
from dafw.run import provenance
from dafw.run.clock import Clock
from dafw.run.identity import config_hash
from dafw.run.result import Result, Validation, setting_record
from dafw.selection import VALIDATORS
from datamodules.base import DomainDataModule


def collect_result(
    trainer: pl.Trainer, method: Method, data: DomainDataModule, config: dict[str, Any], clock: Clock
) -> Result:
    """The result of a run after its test.

    Args:
        trainer: holds the metrics of the test.
        method: the method that was tested.
        data: the data that it was tested on.
        config: the complete configuration.
        clock: measured the run.
    """
    metrics: dict[str, dict[str, float]] = {}
    for key, value in trainer.callback_metrics.items():
        part = key.partition("/dataloader_idx")[0].split("/")
        if part[0] == "test":
            metrics.setdefault(part[1], {})[part[2]] = float(value)
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = {monitor for each in callbacks if isinstance(monitor := getattr(each, "monitor", None), str)}
    primary = method.problem.primary
    return Result(
        method=type(method).__name__,
        task=data.task,
        source=tuple(data.source),
        target=tuple(data.target),
        setting=setting_record(method),
        seed=config.get("seed_everything", 0),
        oracle=data.oracle or not set(data.target).isdisjoint(getattr(method, "trained_on", ())),
        transductive_reason=method.transductive_reason,
        averaged=" and ".join(averaging(callbacks)),
        monitors=tuple(sorted(monitors)),
        norm=method.norm,
        ranks=trainer.world_size,
        threads=torch.get_num_threads(),
        config_hash=config_hash(config),
        steps=method.steps_done,
        seconds={name: round(value, 3) for name, value in clock.now().items()},
        num_target_test=sum(len(data.domain(name, "test")) for name in data.target),
        metric=method.problem.open_primary if data.has_unknown else primary,
        label_sets={"kind": data.class_sets.kind, **data.class_sets.counts},
        undefined_reason=undefined_reason(data),
        test=metrics,
        by_class=method.extra_metrics.by_class,
        history=tuple(Validation(**each) for each in method.history),
        higher_is_better={
            f"source_{primary}": True,
            "source_loss": False,
            f"source_train_{primary}": True,
            **{name: validator.higher_is_better for name, validator in VALIDATORS.items()},
        },
        versions=provenance.versions(),
        git_revision=provenance.git_revision(),
        machine=provenance.machine(),
    )


def undefined_reason(data: DomainDataModule) -> dict[str, str]:
    """By target, why its metrics of unknown classes do not exist. Targets that have them are left out."""
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
        predicted = method.problem.predictions(outputs, *(() if source else method.margins(outputs)))["prediction"]
        found.append((outputs.features.float().cpu(), predicted.cpu(), batch.y))
    features, predictions, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return features, predictions, labels


@dataclass(frozen=True)
class Shown:
    """The test samples that pictures show.

    Attributes:
        features: (N, d).
        domains: N names.
        classes: N labels.
        class_names: K names by label.
        confusion: (K, K) counts of the targets' samples, true class by predicted class.
    """

    features: NDArray[Any]
    domains: list[str]
    classes: list[int]
    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]


def _shown(method: Method, data: DomainDataModule, most: int) -> Shown:
    """At most ``most`` test samples of each domain, passed through the network that is evaluated."""
    features, domains, classes = [], [], []
    names = (*data.known_names, *(["unknown"] if data.has_unknown or method.rejects else []))
    matrix = np.zeros((len(names), len(names)), np.int64)
    method.eval()
    for name in (*data.sources, *data.target):
        domain = data.domain(name, "test")
        part = domain.subset(range(0, len(domain), max(1, -(-len(domain) // most))))
        found, predictions, labels = _outputs(method, data, part, name in data.sources)
        features.append(found)
        domains += [name] * len(part)
        classes += labels.tolist()
        if name in data.target:
            np.add.at(matrix, (labels, predictions), 1)
    return Shown(np.concatenate(features), domains, classes, names, matrix)


def write_plots(method: Method, data: DomainDataModule, folder: Path, most: int = 500) -> list[Path]:
    """Draws a finished run into ``plots/``: curves, embedding, confusion matrix and the method's own pictures.

    A picture that fails is left out, with a warning that names it.

    Args:
        method: the trained method.
        data: the datamodule with the test splits.
        folder: the run directory, with ``metrics.csv``.
        most: number of samples of each domain to show at most.

    Returns:
        The PNG files.
    """

    def curves() -> dict[str, Figure]:
        logged = plots.read_metrics(folder / "metrics.csv")
        series = {name: values for name, values in logged.items() if not name.startswith("test/")}
        return {"curves": plots.curves(series)} if series else {}

    @cache
    def shown() -> Shown:
        return _shown(method, data, most)

    def embedding() -> dict[str, Figure]:
        one = shown()
        return {"embedding": plots.embedding(one.features, one.domains, one.classes, class_names=one.class_names)}

    def confusion() -> dict[str, Figure]:
        return {"confusion": plots.confusion(shown().confusion, shown().class_names)}

    drawn: dict[str, Callable[[], Mapping[str, Figure]]] = {"curves": curves}
    if method.problem.supports_unsupervised_validators:
        drawn |= {"embedding": embedding, "confusion": confusion}
    drawn[f"pictures of {type(method).__name__}"] = lambda: method.eval().pictures(data)
    paths: list[Path] = []
    for what, draw in drawn.items():
        try:
            for name, figure in draw().items():
                path = folder / "plots" / f"{name}.png"
                plots.save(figure, path)
                paths.append(path)
        except Exception as error:  # of the data, of matplotlib or of a user's method: the run is done all the same
            warn(f"{what} could not be drawn: {sentence(error)}")
    return paths
