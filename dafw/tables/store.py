"""What the runs of a table have found: ``result.json`` files, checked, and the number a criterion picks from each."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dafw.run.directory import ORACLE
from dafw.tables.fields import split_task
from dafw.tables.grid import LEFT_OUT, Cell, Table

SCHEMA_VERSION = 1
Metrics = Mapping[str, Mapping[str, float]]


class BrokenResult(Exception):
    """A ``result.json`` that cannot be used.

    Args:
        message: why, with the file's name.
        damaged: whether it is no result at all, so that nothing is lost if the run is made again.
    """

    def __init__(self, message: str, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


@dataclass(frozen=True)
class Record:
    """What a run knew at one validation: scores of the checkpoint then, and what it would have reported."""

    step: int
    validators: Mapping[str, float]
    oracle: Mapping[str, float]
    test: Metrics


@dataclass(frozen=True)
class Result:
    """One finished run. Metrics are fractions; ``ranks`` and ``num_target_test`` are 0 where the file does not say.

    ``metric`` is what is read; ``own_metric`` is the run's own, by which target labels judge its validations.
    """

    directory: Path
    target: tuple[str, ...]
    metric: str
    own_metric: str
    test: Metrics
    history: tuple[Record, ...]
    higher_is_better: Mapping[str, bool]
    steps: int
    seconds: float
    oracle: bool
    setting: str
    transductive_reason: str
    averaged: str
    monitors: tuple[str, ...]
    ranks: int
    num_target_test: int
    label_sets: Mapping[str, Any]
    machine: str
    versions: Mapping[str, str]
    git_revision: str

    @property
    def criteria(self) -> tuple[str, ...]:
        """The selection criteria this run can be read by."""
        validators = sorted({name for record in self.history for name in record.validators})
        oracle = ["oracle"] if any(self.own_metric in record.oracle for record in self.history) else []
        return ("last", *validators, *oracle)

    def is_without(self, criterion: str) -> bool:
        """Whether the criterion reads what a run of this setting never sees: the source, or the target."""
        if self.setting not in ("source-free", "generalization") or criterion in self.criteria:
            return False
        from dafw.selection import VALIDATORS  # which needs torch

        if self.setting == "generalization":
            return criterion in VALIDATORS
        return criterion.startswith("source_") or (criterion in VALIDATORS and VALIDATORS[criterion].needs_source)

    def scores(self, criterion: str) -> dict[str, float] | None:
        """The test metric of each target domain at the checkpoint the criterion chooses, as a fraction.

        ``last`` is the final weights, and so is every other criterion where these are an average over training, which
        no validation is of. A validator chooses the validation at which it was best, the earliest of equals,
        and ``oracle`` that of the best ``own_metric`` on the target's validation split;
        scores that are not finite are never chosen. None if the run does not have what the criterion needs.
        """
        if criterion == "last" or self.averaged:
            return self._targets(self.test)
        scored: list[tuple[float, Record]] = []
        for record in self.history:
            score = (record.oracle if criterion == "oracle" else record.validators).get(
                self.own_metric if criterion == "oracle" else criterion
            )
            if score is not None and math.isfinite(score):
                up = criterion == "oracle" or self.higher_is_better.get(criterion, True)
                scored.append((score if up else -score, record))
        return self.best(scored)

    def best(self, scored: Sequence[tuple[float, Record]]) -> dict[str, float] | None:
        """The test metric of each target at the validation of the highest score, the earliest of equals."""
        return self._targets(max(scored, key=lambda pair: pair[0])[1].test) if scored else None

    def left_out_scores(self, helpers: Mapping[str, "Result"]) -> list[tuple[float, Record]]:
        """Each validation at which all helpers were validated too, with their mean score on the source each left out.

        Args:
            helpers: by source, the run that trained without it and has it among its targets.
        """
        scored = []
        for record in self.history:
            found = [helper.score_at(record.step, name) for name, helper in helpers.items()]
            if found and all(map(math.isfinite, found)):
                scored.append((fmean(found), record))
        return scored

    def score_at(self, step: int, domain: str) -> float:
        """The metric on a domain's test split at the validation after so many steps; nan if there is none."""
        tests = [record.test for record in self.history if record.step == step]
        return tests[-1].get(domain, {}).get(self.metric, math.nan) if tests else math.nan

    def _targets(self, test: Metrics) -> dict[str, float] | None:
        scores = {name: test.get(name, {}).get(self.metric, math.nan) for name in self.target}
        return scores if all(math.isfinite(score) for score in scores.values()) else None


@dataclass(frozen=True)
class Store:
    """The results of a table: by row, task and seed, and the reasons for those that cannot be used."""

    table: Table
    directories: Mapping[tuple[str, str, int], Path]
    results: Mapping[tuple[str, str, int], Result]
    broken: Mapping[tuple[str, str, int], str]

    @property
    def oracles(self) -> frozenset[str]:
        """The rows that learn from target labels: by configuration or by a result's own word, or start from such."""
        return self.table.descended({name for (name, _, _), result in self.results.items() if result.oracle}).union(
            self.table.oracles
        )

    @property
    def monitoring(self) -> tuple[str, ...]:
        """The rows with a run in which a callback may monitor what target labels say, or by its result did."""
        did = {
            row
            for (row, _, _), result in self.results.items()
            if any(name.startswith(ORACLE) for name in result.monitors)
        }
        return tuple(row.name for row in self.table.rows if row.name in did.union(self.table.monitoring))

    @property
    def transductive(self) -> dict[str, str]:
        """By row, why its predictions depend on other test samples."""
        return {
            name: result.transductive_reason
            for (name, _, _), result in self.results.items()
            if result.transductive_reason
        }

    @property
    def averaged(self) -> dict[str, str]:
        """By row, what averages its weights over training."""
        return {name: result.averaged for (name, _, _), result in self.results.items() if result.averaged}

    def is_without(self, row: str, task: str, seed: int, criterion: str) -> bool:
        """Whether the criterion cannot choose for this run, whose setting or labels do not allow it."""
        result = self.get(row, task, seed)
        if result is None or result.averaged:
            return False
        return row not in self.table.chosen_by_left_out if criterion == LEFT_OUT else result.is_without(criterion)

    def scores(self, row: str, task: str, seed: int, criterion: str) -> dict[str, float] | None:
        """The test metric of each target domain of a cell, as a fraction; see :meth:`Result.scores`.

        :data:`LEFT_OUT` chooses the validation at which the runs that each left out another source are best on it, on
        average. What a run that left out a source scores on this task's target has no part in it.
        """
        result = self.get(row, task, seed)
        if result is None or criterion != LEFT_OUT or result.averaged:
            return result.scores(criterion) if result is not None else None
        if row not in self.table.chosen_by_left_out:
            return None
        tasks = self.table.without_each_source(task)
        helpers = {left: self.get(row, helper, seed) for left, helper in tasks.items()}
        present = {left: helper for left, helper in helpers.items() if helper is not None}
        return result.best(result.left_out_scores(present)) if len(present) == len(helpers) else None

    def get(self, row: str, task: str, seed: int) -> Result | None:
        """The result of one cell, None if it is missing or broken."""
        return self.results.get((row, task, seed))

    def domain_percents(self, row: str, task: str, criterion: str) -> dict[str, dict[int, float]]:
        """Percent by target domain and seed."""
        _, targets = split_task(task)
        percents: dict[str, dict[int, float]] = {target: {} for target in targets}
        for seed in self.table.seeds:
            for target, score in (self.scores(row, task, seed, criterion) or {}).items():
                percents[target][seed] = 100 * score
        return percents

    def percents(self, row: str, task: str, criterion: str) -> dict[int, float]:
        """Percent by seed, the mean over the task's target domains."""
        domains = list(self.domain_percents(row, task, criterion).values())
        return {seed: fmean(domain[seed] for domain in domains) for seed in domains[0]}


def read_result(directory: Path, cell: Cell, metric: str) -> Result | None:
    """The result in a run directory; None if the run is not done.

    Raises:
        BrokenResult: if the file is not a result of this schema, or of another cell, or its number is not finite.
    """
    path = directory / "result.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BrokenResult(f"{path} is not JSON", damaged=True) from error
    try:
        if given["schema_version"] != SCHEMA_VERSION:
            raise BrokenResult(f"{path} has schema {given['schema_version']}, this dafw reads {SCHEMA_VERSION}")
        result = _parse(directory, given, metric)
        sources, targets = split_task(cell.task)
        found = tuple(given["source"]), result.target, given["seed"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{path} does not follow schema {SCHEMA_VERSION} ({type(error).__name__}: {error})"
        raise BrokenResult(why, damaged=True) from error
    if found != (sources, targets, cell.seed):
        raise BrokenResult(
            f"{path} is of {given.get('task')} seed {given['seed']}, not of {cell.task} seed {cell.seed}"
        )
    if result.scores("last") is None:
        reasons = "".join(f", since {reason}" for reason in (given.get("undefined") or {}).values())
        known = {name for found in result.test.values() for name in found}
        others = "" if metric in known or not known else f": there are {', '.join(sorted(known))}"
        raise BrokenResult(f'{path} has no finite test "{metric}" for {", ".join(targets)}{reasons}{others}')
    return result


def _parse(directory: Path, given: Any, metric: str) -> Result:
    history = tuple(
        Record(
            step=int(record["step"]),
            validators=_floats(record["validators"]),
            oracle=_floats(record.get("oracle") or {}),
            test={name: _floats(metrics) for name, metrics in record["test"].items()},
        )
        for record in given["history"]
    )
    return Result(
        directory=directory,
        target=tuple(given["target"]),
        metric=metric,
        own_metric=str(given.get("metric") or metric),
        test={name: _floats(metrics) for name, metrics in given["test"].items()},
        history=history,
        higher_is_better={name: bool(up) for name, up in given["higher_is_better"].items()},
        steps=int(given["steps"]),
        seconds=float(given["seconds"]["total"]),
        oracle=bool(given["oracle"]),
        setting=str(given.get("setting") or ""),
        transductive_reason=str(given.get("transductive_reason") or ""),
        averaged=str(given.get("averaged") or ""),
        monitors=tuple(map(str, given.get("monitors") or ())),
        label_sets=dict(given.get("label_sets") or {}),
        ranks=int(given.get("ranks") or 0),
        num_target_test=int(given.get("num_target_test") or 0),
        machine=str(given.get("machine") or ""),
        versions={name: str(version) for name, version in given["versions"].items()},
        git_revision=str(given.get("git_revision") or ""),
    )


def _floats(given: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in given.items()}


def load(table: Table, root: Path) -> Store:
    """Reads every result of the table under ``root``; a broken file counts as missing, and its reason is kept."""
    from dafw.run.directory import run_directory

    directories: dict[tuple[str, str, int], Path] = {}
    results: dict[tuple[str, str, int], Result] = {}
    broken: dict[tuple[str, str, int], str] = {}
    for cell in table.runs():
        key = cell.row, cell.task, cell.seed
        directories[key] = run_directory(cell.config, root)
        try:
            result = read_result(directories[key], cell, table.metric)
        except BrokenResult as error:
            broken[key] = str(error)
        else:
            if result is not None:
                results[key] = result
    return Store(table, directories, results, broken)
