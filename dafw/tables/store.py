"""The results of a table's runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean

from dafw.escape import named
from dafw.run.criteria import LEFT_OUT, CellResult
from dafw.run.directory import run_directory
from dafw.run.identity import ORACLE
from dafw.run.result import RESULT, BrokenResult, read_result
from dafw.run.sources import changed_since
from dafw.tables.data import Key, Listings
from dafw.tables.fields import split_task
from dafw.tables.grid import Cell, Table


@dataclass(frozen=True)
class Store:
    """The results of a table by row, task and seed, and by the same key why a result cannot be used.

    ``changed`` has, by the same key, the files whose code changed since a result was made, and ``other_data`` how the
    samples differ that it was made from.
    """

    table: Table
    directories: Mapping[Key, Path]
    results: Mapping[Key, CellResult]
    broken: Mapping[Key, str]
    changed: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)
    other_data: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)
    _scores: dict[tuple[str, str, int, str], dict[str, float] | None] = field(default_factory=dict, init=False)

    @cached_property
    def oracles(self) -> frozenset[str]:
        """The rows that target labels train, by configuration or by result, and the rows that start from such a row."""
        return self.table.descended({name for (name, _, _), result in self.results.items() if result.run.oracle}).union(
            self.table.oracles
        )

    @property
    def stale(self) -> frozenset[Key]:
        """The cells whose result other code or other data made."""
        return frozenset({*self.changed, *self.other_data})

    @property
    def origins(self) -> list[str]:
        """Which rows other code or other data made, and what changed since; empty if there is none."""
        found = ("by changed code", self._by_rows(self.changed)), ("from other data", self._by_rows(self.other_data))
        return [f"made {how}: {said}" for how, said in found if said]

    def _by_rows(self, found: Mapping[Key, tuple[str, ...]]) -> str:
        rows: dict[frozenset[str], tuple[list[str], list[str]]] = {}
        for row in self.table.rows:
            what = [one for (name, _, _), changed in found.items() if name == row.name for one in changed]
            if what:
                rows.setdefault(frozenset(what), ([], list(dict.fromkeys(what))))[0].append(row.name)
        return "; ".join(f"rows {named(*names)} ({_listed(what)})" for names, what in rows.values())

    def has(self, metric: str, criterion: str) -> bool:
        """Whether a run has a score by another metric under a criterion; true for the final weights without runs."""
        if criterion == "last":
            return True
        by = self.by_metric(metric)
        return any(by.scores(*key, criterion) for key in self.results)

    def by_metric(self, metric: str) -> "Store":
        """The same results, read by another metric."""
        if metric == self.table.metric:
            return self
        results = {key: replace(result, metric=metric) for key, result in self.results.items()}
        return replace(self, table=replace(self.table, metric=metric), results=results)

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
    sources, targets = cell.domains
    if (run.source, run.target, run.seed) != (sources, targets, cell.seed):
        raise BrokenResult(f"{path} is of {run.task} seed {run.seed}, not of {cell.task} seed {cell.seed}")
    result = CellResult(run, directory, metric)
    if result.scores("last") is None and not run.untested:
        reasons = "".join(f", since {reason}" for reason in run.undefined_reason.values())
        known = {name for found in run.test.values() for name in found}
        others = "" if metric in known or not known else f": there are {', '.join(sorted(known))}"
        raise BrokenResult(f'{path} has no finite test "{metric}" for {", ".join(targets)}{reasons}{others}')
    return result


def load(table: Table, root: Path, look: bool = False) -> Store:
    """Reads all results of a table under ``root``. A broken file counts as missing, and the store keeps its reason.

    Args:
        table: what to read.
        root: folder of the run directories.
        look: whether the data is listed anew; otherwise results are compared with what the last listing found.
    """
    directories: dict[Key, Path] = {}
    results: dict[Key, CellResult] = {}
    broken: dict[Key, str] = {}
    cells = {(cell.row, cell.task, cell.seed): cell for cell in table.runs()}
    for key, cell in cells.items():
        directories[key] = run_directory(cell.config, root)
        try:
            result = read_cell(directories[key], cell, table.metric)
        except BrokenResult as error:
            broken[key] = str(error)
        else:
            if result is not None:
                results[key] = result
    listings = Listings(root)
    if look:
        listings.refresh(cells, results)
    files = cache(lambda sources: changed_since(dict(sources)))
    changed = {key: files(tuple(result.run.sources.items())) for key, result in results.items()}
    other_data = {key: listings.changes(cells[key], result) for key, result in results.items()}
    return Store(table, directories, results, broken, _with_starts(cells, changed), _with_starts(cells, other_data))


def _with_starts(cells: Mapping[Key, Cell], found: Mapping[Key, tuple[str, ...]]) -> dict[Key, tuple[str, ...]]:
    """What changed by result, together with what changed of the runs that it starts from."""
    joined: dict[Key, tuple[str, ...]] = {}
    for key in found:
        changed: list[str] = []
        one: Cell | None = cells[key]
        while one is not None:
            changed += found.get((one.row, one.task, one.seed), ())
            one = one.start
        if changed:
            joined[key] = tuple(dict.fromkeys(changed))
    return joined
