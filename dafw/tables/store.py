"""The results of a table's runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from dafw.run.criteria import LEFT_OUT, CellResult
from dafw.run.directory import run_directory
from dafw.run.identity import ORACLE
from dafw.run.result import RESULT, BrokenResult, read_result
from dafw.run.sources import Sources, changed_since
from dafw.tables.fields import split_task
from dafw.tables.grid import Cell, Table


@dataclass(frozen=True)
class Store:
    """The results of a table by row, task and seed, and by the same key why a result cannot be used.

    ``changed`` has, by the same key, the files whose code changed since a result was made.
    """

    table: Table
    directories: Mapping[tuple[str, str, int], Path]
    results: Mapping[tuple[str, str, int], CellResult]
    broken: Mapping[tuple[str, str, int], str]
    changed: Mapping[tuple[str, str, int], tuple[str, ...]] = field(default_factory=dict)
    _scores: dict[tuple[str, str, int, str], dict[str, float] | None] = field(default_factory=dict, init=False)

    @cached_property
    def oracles(self) -> frozenset[str]:
        """The rows that target labels train, by configuration or by result, and the rows that start from such a row."""
        return self.table.descended({name for (name, _, _), result in self.results.items() if result.run.oracle}).union(
            self.table.oracles
        )

    @property
    def made_by_changed_code(self) -> str:
        """The rows with a result that other code made, and the files that changed since; empty if there is none."""
        rows: dict[tuple[str, ...], list[str]] = {}
        for row in self.table.rows:
            files = {file: None for (name, _, _), found in self.changed.items() if name == row.name for file in found}
            if files:
                rows.setdefault(tuple(files), []).append(row.name)
        return "; ".join(f"rows {', '.join(names)} ({_listed(files)})" for files, names in rows.items())

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


def _listed(files: Sequence[str], most: int = 4) -> str:
    more = len(files) - most
    return ", ".join(files) if more < 2 else f"{', '.join(files[:most])} and {more} more"


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
    return Store(table, directories, results, broken, _changed(table, results))


def _changed(
    table: Table, results: Mapping[tuple[str, str, int], CellResult]
) -> dict[tuple[str, str, int], tuple[str, ...]]:
    """By result, the files that changed since it was made, or since a run was made that it starts from."""
    compared: dict[frozenset[tuple[str, str]], tuple[str, ...]] = {}

    def files(sources: Sources) -> tuple[str, ...]:
        key = frozenset(sources.items())
        if key not in compared:
            compared[key] = changed_since(sources)
        return compared[key]

    found: dict[tuple[str, str, int], tuple[str, ...]] = {}
    for cell in table.runs():
        changed: list[str] = []
        one: Cell | None = cell
        while one is not None:
            result = results.get((one.row, one.task, one.seed))
            changed += files(result.run.sources) if result is not None else ()
            one = one.start
        if changed and (cell.row, cell.task, cell.seed) in results:
            found[cell.row, cell.task, cell.seed] = tuple(dict.fromkeys(changed))
    return found
