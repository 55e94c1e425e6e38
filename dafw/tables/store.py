"""The results of a table's runs, and the number that a criterion picks from each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from dafw.run.directory import run_directory
from dafw.run.identity import ORACLE
from dafw.run.result import RESULT, BrokenResult, Metrics, Result, Validation, read_result
from dafw.tables.fields import split_task
from dafw.tables.grid import LEFT_OUT, Cell, Table

Scored = tuple[float, Validation]
"""A validation with its score. A higher score is better."""


@dataclass(frozen=True)
class CellResult:
    """One finished run of a table, read by one metric.

    Attributes:
        run: its result.
        directory: its run directory.
        metric: the test metric to read. Target labels judge a validation by the run's own metric, which may be another.
    """

    run: Result
    directory: Path
    metric: str

    @property
    def criteria(self) -> tuple[str, ...]:
        """The selection criteria that this run has the scores for."""
        validators = sorted({name for one in self.run.history for name in one.validators})
        oracle = ["oracle"] if any(self.run.metric in one.oracle for one in self.run.history) else []
        return ("last", *validators, *oracle)

    def is_without(self, criterion: str) -> bool:
        """Whether the criterion reads samples that a run of this setting never sees, or a validation it never has."""
        setting = self.run.setting
        if setting.stream:
            return criterion not in self.criteria
        if (setting.source and setting.target) or criterion in self.criteria:
            return False
        from dafw.selection import VALIDATORS  # imports torch

        if not setting.target and criterion in VALIDATORS:
            return True
        reads_source = criterion.startswith("source_") or (
            criterion in VALIDATORS and VALIDATORS[criterion].needs_source
        )
        return not setting.source and reads_source

    def scores(self, criterion: str) -> dict[str, float] | None:
        """The test metric of each target at the checkpoint that the criterion chooses, as a fraction.

        ``last`` is the final weights. So is every criterion if these are an average that no validation has seen. A
        validator chooses the validation with its best score, the earliest of equals. ``oracle`` chooses the one with
        the best value of the run's own metric on the target's validation split. Scores that are not finite are never
        chosen.

        Returns:
            Fractions by target, or ``None`` if the run does not have the scores of the criterion.
        """
        if criterion == "last" or self.run.averaged:
            return self._targets(self.run.test)
        scored: list[Scored] = []
        for one in self.run.history:
            if criterion == "oracle":
                score, up = one.oracle.get(self.run.metric), True
            else:
                score, up = one.validators.get(criterion), self.run.higher_is_better.get(criterion, True)
            if score is not None and math.isfinite(score):
                scored.append((score if up else -score, one))
        return self.best(scored)

    def best(self, scored: Sequence[Scored]) -> dict[str, float] | None:
        """The test metric of each target at the validation with the highest score, the earliest of equals."""
        return self._targets(max(scored, key=lambda pair: pair[0])[1].test) if scored else None

    def left_out_scores(self, helpers: Mapping[str, "CellResult"]) -> list[Scored]:
        """Scores the validations at which all helpers were validated too, by the mean over the helpers.

        Args:
            helpers: by source, the run that trained without it and has it among its targets. It is scored on it.
        """
        scored = []
        for one in self.run.history:
            found = [helper.score_at(one.step, name) for name, helper in helpers.items()]
            if found and all(map(math.isfinite, found)):
                scored.append((fmean(found), one))
        return scored

    def score_at(self, step: int, domain: str) -> float:
        """The metric on a domain's test split at the validation after ``step`` steps; nan if there is none."""
        tests = [one.test for one in self.run.history if one.step == step]
        return tests[-1].get(domain, {}).get(self.metric, math.nan) if tests else math.nan

    def _targets(self, test: Metrics) -> dict[str, float] | None:
        scores = {name: test.get(name, {}).get(self.metric, math.nan) for name in self.run.target}
        return scores if all(math.isfinite(score) for score in scores.values()) else None


@dataclass(frozen=True)
class Store:
    """The results of a table by row, task and seed, and by the same key why a result cannot be used."""

    table: Table
    directories: Mapping[tuple[str, str, int], Path]
    results: Mapping[tuple[str, str, int], CellResult]
    broken: Mapping[tuple[str, str, int], str]
    _scores: dict[tuple[str, str, int, str], dict[str, float] | None] = field(default_factory=dict, init=False)

    @cached_property
    def oracles(self) -> frozenset[str]:
        """The rows that target labels train, by configuration or by result, and the rows that start from such a row."""
        return self.table.descended({name for (name, _, _), result in self.results.items() if result.run.oracle}).union(
            self.table.oracles
        )

    @property
    def monitoring(self) -> tuple[str, ...]:
        """The rows with a run in which a callback may monitor a value of target labels, or did by its result."""
        did = {
            row
            for (row, _, _), result in self.results.items()
            if any(name.startswith(ORACLE) for name in result.run.monitors)
        }
        return tuple(row.name for row in self.table.rows if row.name in did.union(self.table.monitoring))

    @property
    def transductive(self) -> dict[str, str]:
        """By row, why its predictions depend on other test samples. Other rows are left out."""
        return {
            name: result.run.transductive_reason
            for (name, _, _), result in self.results.items()
            if result.run.transductive_reason
        }

    @property
    def averaged(self) -> dict[str, str]:
        """By row, the callbacks that replace its final weights by an average. Other rows are left out."""
        return {name: result.run.averaged for (name, _, _), result in self.results.items() if result.run.averaged}

    def is_without(self, row: str, task: str, seed: int, criterion: str) -> bool:
        """Whether the setting or the labels of this run leave the criterion nothing to choose by."""
        result = self.get(row, task, seed)
        if result is None or result.run.averaged:
            return False
        return row not in self.table.chosen_by_left_out if criterion == LEFT_OUT else result.is_without(criterion)

    def scores(self, row: str, task: str, seed: int, criterion: str) -> dict[str, float] | None:
        """The test metric of each target domain of a cell, as a fraction; see :meth:`CellResult.scores`.

        :data:`LEFT_OUT` uses the runs that each left out one source. It chooses the validation at which they are best,
        on average, on the source that they left out. Their scores on this task's target have no part in the choice.
        A choice is made once.
        """
        key = row, task, seed, criterion
        if key not in self._scores:
            self._scores[key] = self._choose(*key)
        return self._scores[key]

    def _choose(self, row: str, task: str, seed: int, criterion: str) -> dict[str, float] | None:
        result = self.get(row, task, seed)
        if result is None or criterion != LEFT_OUT or result.run.averaged:
            return result.scores(criterion) if result is not None else None
        if row not in self.table.chosen_by_left_out:
            return None
        tasks = self.table.without_each_source(task)
        helpers = {left: self.get(row, helper, seed) for left, helper in tasks.items()}
        present = {left: helper for left, helper in helpers.items() if helper is not None}
        return result.best(result.left_out_scores(present)) if len(present) == len(helpers) else None

    def get(self, row: str, task: str, seed: int) -> CellResult | None:
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


def read_cell(directory: Path, cell: Cell, metric: str) -> CellResult | None:
    """The result of a cell in its run directory, or ``None`` if the run is not done.

    Raises:
        BrokenResult: if the file is not a result, is of another cell, or has no finite number although its targets
            have labels.
    """
    run = read_result(directory)
    if run is None:
        return None
    path = directory / RESULT
    sources, targets = split_task(cell.task)
    if (run.source, run.target, run.seed) != (sources, targets, cell.seed):
        raise BrokenResult(f"{path} is of {run.task} seed {run.seed}, not of {cell.task} seed {cell.seed}")
    result = CellResult(run, directory, metric)
    if result.scores("last") is None and not run.untested:
        reasons = "".join(f", since {reason}" for reason in run.undefined_reason.values())
        known = {name for found in run.test.values() for name in found}
        others = "" if metric in known or not known else f": there are {', '.join(sorted(known))}"
        raise BrokenResult(f'{path} has no finite test "{metric}" for {", ".join(targets)}{reasons}{others}')
    return result


def load(table: Table, root: Path) -> Store:
    """Reads all results of a table under ``root``. A broken file counts as missing, and the store keeps its reason."""
    directories: dict[tuple[str, str, int], Path] = {}
    results: dict[tuple[str, str, int], CellResult] = {}
    broken: dict[tuple[str, str, int], str] = {}
    for cell in table.runs():
        key = cell.row, cell.task, cell.seed
        directories[key] = run_directory(cell.config, root)
        try:
            result = read_cell(directories[key], cell, table.metric)
        except BrokenResult as error:
            broken[key] = str(error)
        else:
            if result is not None:
                results[key] = result
    return Store(table, directories, results, broken)
