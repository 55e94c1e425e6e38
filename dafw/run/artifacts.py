"""What a finished run leaves: its result, and its pictures."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from dafw import plots
from dafw.callbacks import averaging
from dafw.checkpoints import checkpoints
from dafw.errors import UserError, warning_that_names
from dafw.estimation import SourceEvidence
from dafw.files import write_atomically
from dafw.methods import Method
from dafw.methods.starting import fill, find_checkpoint
from dafw.problems import NetworkBase, Problem, Shown
from dafw.problems.base import Picture
from dafw.run import provenance
from dafw.run.clock import Clock
from dafw.run.directory import EXAMPLES
from dafw.run.estimates import record_estimates
from dafw.run.identity import changing_callbacks, config_hash
from dafw.run.pretrained import pretrained_weights
from dafw.run.result import Result, SettingRecord, Validation
from dafw.run.sources import sources_of
from dafw.run.stream_record import stream_result
from datamodules.base import DomainDataModule

MOST_TARGETS = 4
"""Targets that a line above a picture names."""


def collect_result(
    trainer: pl.Trainer,
    method: Method,
    data: DomainDataModule,
    config: dict[str, Any],
    clock: Clock,
    evidence: SourceEvidence | None = None,
) -> Result:
    """The result of a run after its test.

    Args:
        trainer: made the run.
        method: the method that was tested.
        data: the data that it was tested on.
        config: the complete configuration.
        clock: measured the run.
        evidence: what is kept of the source, see :func:`~dafw.run.estimates.source_evidence`.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = {monitor for each in callbacks if isinstance(monitor := getattr(each, "monitor", None), str)}
    primary, setting = method.problem.primary, method.setting
    return Result(
        method=type(method).__name__,
        task=data.task,
        source=tuple(data.source),
        target=tuple(data.target),
        setting=SettingRecord(setting.name, setting.sees_source, setting.sees_target, setting.streams_target),
        seed=config.get("seed_everything", 0),
        oracle=data.oracle or not set(data.target).isdisjoint(method.trained_on),
        transductive_reason=method.transductive_reason,
        averaged=" and ".join(averaging(callbacks)),
        monitors=tuple(sorted(monitors)),
        norm=method.norm,
        ranks=trainer.world_size,
        threads=torch.get_num_threads(),
        config_hash=config_hash(config),
        steps=method.steps_done,
        seconds={name: round(value, 3) for name, value in clock.now().items()},
        num_target_test=method.evaluator.num_target_test,
        metric=method.problem.open_primary if data.has_unknown else primary,
        label_sets={"kind": data.class_sets.kind, **data.class_sets.counts},
        undefined_reason=undefined_reason(data),
        test=method.evaluator.test,
        by_class=method.evaluator.extra.by_class,
        history=tuple(Validation(**each) for each in method.history),
        higher_is_better={
            f"source_{primary}": True,
            "source_loss": False,
            f"source_train_{primary}": True,
            **{name: validator.higher_is_better for name, validator in method.evaluator.validators.items()},
        },
        versions=provenance.versions(),
        git_revision=provenance.git_revision(),
        machine=provenance.machine(),
        holds_out_source=data.holds_out_source,
        fast_forms=method.fast_forms,
        source_use=method.source_use,
        pretrained=pretrained_weights(config),
        cost=clock.cost(),
        stream=stream_result(method, data, clock.seconds["train"], trainer.world_size),
        estimates=record_estimates(method, evidence),
    )


def code_of(
    method: Method, data: DomainDataModule, callbacks: Iterable[pl.Callback], config: dict[str, Any]
) -> dict[str, str]:
    """By module, a digest of the code of a method with all its parts, its problem, its data and the callbacks."""
    named = {str(one["class_path"]).rpartition(".")[2] for one in changing_callbacks(config)}
    changing = [callback for callback in callbacks if type(callback).__name__ in named]
    return sources_of(type(part) for part in (*method.modules(), method.problem, data, *data.made_of, *changing))


def undefined_reason(data: DomainDataModule) -> dict[str, str]:
    """By target, why it has no metrics, or no metrics of unknown classes. Targets that have them are left out."""
    found = {}
    for name in data.target:
        domain = data.domain(name, "test")
        if domain.labels is None:
            found[name] = f"{name} has no labels"
        elif data.has_unknown:
            unknown = np.asarray(domain.labels) == data.num_classes
            if unknown.all() or not unknown.any():
                lacking = "known" if unknown.all() else "target-private"
                found[name] = f"the test split of {name} has no sample of a {lacking} class"
    return found


@torch.no_grad()
def shown_samples(method: Method, data: DomainDataModule, folder: Path | None = None) -> list[Shown]:
    """Test samples batch by batch with their outputs, evenly spaced, as many as the problem wants of each domain.

    Args:
        method: the trained method.
        data: the datamodule with the test splits.
        folder: the run directory, whose earlier model is shown too if the problem shows one; ``None``: none is.
    """
    method.eval()
    problem = method.evaluator.problem
    earlier = earlier_network(method, folder) if problem.shows_earlier and folder is not None else None
    found = []
    for name in (*data.sources, *data.target):
        domain, is_target = data.tested(name), name in data.target
        part = domain.subset(range(0, len(domain), max(1, -(-len(domain) // problem.most_shown))))
        for batch in data.evaluation_loader(part, shard=False):
            outputs = method.evaluate(batch.unlabelled(part).to(method.device), not is_target)
            margins = method.evaluator.open_set.margins(outputs) if is_target else ()
            predictions = problem.predictions(outputs, *margins)
            labels = batch.y if batch.num_source else None
            margin = margins[0].cpu() if margins else None
            one = Shown(name, is_target, batch.x, outputs.to("cpu"), labels, predictions, margin)
            if earlier is not None:
                said, network = earlier
                rows, count = batch.to(method.device), 0 if is_target else len(batch)
                before = problem.predictions(method.forward_rows(rows.x, count, network, rows.sizes))
                one = replace(one, earlier=before, earlier_name=said)
            found.append(one)
    return found


def earlier_network(method: Method, folder: Path) -> tuple[str, NetworkBase] | None:
    """The model that a run's pictures show beside its last one, with what it is called; ``None`` without one.

    It is the model that the run started from. Without such a model it is the oldest checkpoint that the run keeps, if
    that is not its last.
    """
    start = method.hparams.get("checkpoint")
    kept = checkpoints(folder / "checkpoints")
    if start is None and len(kept) < 2:
        return None
    network = copy.deepcopy(method.eval_network).eval()
    try:
        path = kept[-1] if start is None else find_checkpoint(start)
        content = fill(network, path, method.num_classes)
    except UserError:  # a model that is gone, or of another form, such as one with statistics of each domain
        return None
    return f"step {content['steps']}" if start is None else "start model", network


def run_title(method: Method, data: DomainDataModule) -> str:
    """The run in a line: method, task, seed, step, and the metric of each target on how many test samples.

    Of more than :data:`MOST_TARGETS` targets it has their number and the mean of the metric.
    """
    metric = method.problem.open_primary if data.has_unknown else method.problem.primary
    found = {name: method.evaluator.test.get(name, {}).get(metric) for name in data.target}
    known = {name: value for name, value in found.items() if value is not None}
    said = [f"{value:.4f}{f' on {name}' if len(found) > 1 else ''}" for name, value in known.items()]
    task = data.task
    if len(found) > MOST_TARGETS:
        said = [f"{fmean(known.values()):.4f} on average"] if known else []
        task = f"{','.join(data.source)}->{data.target[0]} and {len(found) - 1} more"
    count = f"n = {method.evaluator.num_target_test:,}"
    tested = f", {metric.replace('_', ' ')} {', '.join(said)}, {count}" if said else ""
    return f"{type(method).__name__}, {task}, seed {data.seed}, step {method.steps_done:,}{tested}"


def _stream_picture(result: Result | None) -> dict[str, Figure]:
    """The error along the stream, if there is one with labels."""
    found = None if result is None else result.stream
    if found is None or not found.domains:
        return {}
    segments = [(str(one["domain"]), int(one["position"])) for one in found.segments]
    return {"stream": plots.stream_errors(found.bins, segments, found.samples)}


def write_plots(
    method: Method, data: DomainDataModule, folder: Path, result: Result | None = None, curves: bool = True
) -> list[Path]:
    """Draws a finished run into ``plots/``: curves, the problem's pictures and the method's own.

    A picture that fails is left out, with a warning that names it.

    Args:
        method: the trained method.
        data: the datamodule with the test splits.
        folder: the run directory, with ``metrics.csv``.
        result: the result of the run, whose stream is drawn; ``None``: no stream is.
        curves: whether what was logged is drawn.

    Returns:
        The PNG files.
    """

    def logged_values() -> dict[str, Figure]:
        logged = plots.read_metrics(folder / "metrics.csv")
        series = {name: values for name, values in logged.items() if not name.startswith("test/")}
        return {"curves": plots.curves(series)} if series else {}

    def predicted() -> Mapping[str, Picture]:
        if type(method.problem).pictures is Problem.pictures:  # a problem that has none need not predict for them
            return {}
        unknown = ["unknown"] if data.has_unknown or method.evaluator.open_set.rejects else []
        shown, names = shown_samples(method, data, folder), (*data.known_names, *unknown)
        if (found := method.problem.examples(shown, names)) is not None:
            write_atomically(folder / EXAMPLES, json.dumps(found))
        return method.problem.pictures(shown, names)

    drawn: dict[str, Callable[[], Mapping[str, Picture]]] = {"curves": logged_values} if curves else {}
    drawn[f"pictures of {type(method.problem).__name__}"] = predicted
    drawn["stream"] = lambda: _stream_picture(result)
    drawn["metrics"] = lambda: method.problem.metric_pictures(method.evaluator.test)
    drawn[f"pictures of {type(method).__name__}"] = lambda: method.eval().pictures(data)
    title = run_title(method, data)
    paths: list[Path] = []
    for what, draw in drawn.items():
        with warning_that_names(f"{what} could not be drawn"):
            for name, picture in draw().items():
                with warning_that_names(f"{name} could not be drawn"):
                    path = folder / "plots" / f"{name}.png"
                    plots.save(plots.titled(picture if isinstance(picture, Figure) else picture(), title), path)
                    paths.append(path)
    return paths
