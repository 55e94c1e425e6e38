"""A table: methods x tasks x seeds. :mod:`dafw.tables.reading` reads its file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from dafw.errors import UserError, choose
from dafw.escape import named
from dafw.run.criteria import LEFT_OUT
from dafw.run.directory import run_directory
from dafw.run.identity import averages_weights
from dafw.tables.fields import (
    check_parts,
    in_short,
    split_task,
)
from dafw.tables.labels import has_classes_of_the_target, may_monitor_target_labels, trains_on_target_labels
from dafw.tables.overlay import merge
from dafw.tables.published import Published


@dataclass(frozen=True)
class Row:
    """One method of a table: its configuration. A control has an overlay that turns the adaptation off.

    A control names its method in ``control_of``. A method names a row that serves as its control in ``controlled_by``.
    ``start`` names the row whose trained models are the start of this row's runs. ``further_sources`` are labelled
    domains that its runs train on besides those of the task, before them.
    """

    name: str
    config: dict[str, Any]
    published: str
    control_of: str | None = None
    controlled_by: str | None = None
    control: dict[str, Any] | None = None
    start: str | None = None
    further_sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a table, with the complete configuration that ``dafw.run.entry.execute`` takes.

    If it starts from another cell, ``model.init_args.checkpoint`` is the name of that cell's run directory.
    """

    row: str
    task: str
    seed: int
    config: dict[str, Any]
    start: "Cell | None" = None

    @property
    def label(self) -> str:
        """The cell in words, for example ``DANN mnist->usps seed 0``."""
        return f"{self.row} {self.task} seed {self.seed}"

    @property
    def line(self) -> str:
        """The cell for a line of text: as :attr:`label`, but of many targets the first and how many more."""
        return f"{self.row} {in_short(self.task)} seed {self.seed}"

    @property
    def domains(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The sources and the targets of its run."""
        given = self.config["data"]["init_args"]
        return tuple(given["source"]), tuple(given["target"])

    def placed(self, root: Path) -> "Cell":
        """The cell with the path under ``root`` of the run that it starts from. Its run directory stays the same."""
        if self.start is None:
            return self
        checkpoint = str(run_directory(self.start.config, root))
        return replace(self, config=merge(self.config, {"model": {"init_args": {"checkpoint": checkpoint}}}))


@dataclass(frozen=True)
class Table:
    """A grid of runs.

    ``settings`` (from ``--set``) overlay every cell. ``narrowed`` says which part it is. ``further_metrics`` have
    blocks of their own, below those of ``metric``.
    """

    name: str
    title: str
    metric: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    select: tuple[str, ...]
    allow_oracle: bool
    rows: tuple[Row, ...]
    published: tuple[Published, ...]
    per_task: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    narrowed: str = ""
    notes: tuple[str, ...] = ()
    further_metrics: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that it prints."""
        return (self.metric, *self.further_metrics)

    @property
    def folder(self) -> str:
        """Name of the folder of its pages. It ends in a hash if options changed the table of the file."""
        variant = f"{self.narrowed}|{self.settings}"
        return (
            f"{self.name}-{sha256(variant.encode()).hexdigest()[:8]}" if self.narrowed or self.settings else self.name
        )

    def cells(self) -> list[Cell]:
        """All cells, those of the first seed first. So half a table is a whole table with fewer seeds."""
        return [self._cell(row, task, seed) for seed in self.seeds for row in self.rows for task in self.tasks]

    def helpers(self) -> list[Cell]:
        """The further runs that :data:`LEFT_OUT` needs, if it is asked for. Each serves two tasks or more."""
        if LEFT_OUT not in self.select:
            return []
        shown = {(cell.row, cell.task, cell.seed) for cell in self.cells()}
        found: dict[tuple[str, str, int], Cell] = {}
        for seed in self.seeds:
            for row in (row for row in self.rows if row.name in self.chosen_by_left_out):
                for task in self.tasks:
                    for helper in self.without_each_source(task).values():
                        cell: Cell | None = self._cell(row, helper, seed, task)
                        while cell is not None:  # and what it starts from
                            found.setdefault((cell.row, cell.task, cell.seed), cell)
                            cell = cell.start
        return [cell for key, cell in found.items() if key not in shown]

    def runs(self) -> list[Cell]:
        """All runs to make: the cells, and the helpers by which checkpoints are chosen."""
        return list(self._runs)

    @cached_property
    def _runs(self) -> list[Cell]:
        return [*self.cells(), *self.helpers()]

    @staticmethod
    def without_each_source(task: str) -> dict[str, str]:
        """By source, the task without it that has it as a further target. Targets are sorted.

        >>> Table.without_each_source("a,b,c->d")
        {'a': 'b,c->a,d', 'b': 'a,c->b,d', 'c': 'a,b->c,d'}
        """
        sources, targets = split_task(task)
        return {
            left: f"{','.join(name for name in sources if name != left)}->{','.join(sorted([left, *targets]))}"
            for left in sources
        }

    @cached_property
    def chosen_by_left_out(self) -> frozenset[str]:
        """The rows whose checkpoints :data:`LEFT_OUT` chooses: not those that train on the target's labels, which are
        then the left-out domain's too, nor those that average their weights, which have one checkpoint alone.
        """
        averaged = {row.name for row in self.rows if any(map(averages_weights, self._configs(row)))}
        return frozenset(row.name for row in self.rows) - self.oracles - averaged

    @cached_property
    def oracles(self) -> frozenset[str]:
        """The rows with a run that trains on target labels, or that starts from such a run."""
        return self.descended({row.name for row in self.rows if any(map(trains_on_target_labels, self._configs(row)))})

    @cached_property
    def monitoring(self) -> tuple[str, ...]:
        """The rows with a run in which a callback may monitor a value of target labels."""
        return tuple(row.name for row in self.rows if any(map(may_monitor_target_labels, self._configs(row))))

    def descended(self, names: Iterable[str]) -> frozenset[str]:
        """These rows and all rows that start from one of them, directly or through others."""
        first = frozenset(names)
        return first | {name for name, starts in starts_of(self.rows).items() if not first.isdisjoint(starts)}

    def config_of(self, row: str) -> dict[str, Any] | None:
        """The configuration of a row's run on the first task; ``None`` if the table has no such row."""
        return next((self._config(one, self.tasks[0], self.seeds[0]) for one in self.rows if one.name == row), None)

    def _configs(self, row: Row) -> Iterable[dict[str, Any]]:
        """The configuration of a row's run on each task. Seeds change nothing else in it."""
        return (self._config(row, task, self.seeds[0]) for task in self.tasks)

    def _cell(self, row: Row, task: str, seed: int, settings_of: str | None = None) -> Cell:
        """The run of a row on a task, with the ``per_task`` settings of that task or of another one."""
        starts = [self._cell(other, task, seed, settings_of) for other in self.rows if other.name == row.start]
        config = self._config(row, task, seed, settings_of)
        return Cell(row.name, task, seed, config, *starts).placed(Path())

    def _config(self, row: Row, task: str, seed: int, settings_of: str | None = None) -> dict[str, Any]:
        sources, targets = split_task(task)
        domains = {"source": [*row.further_sources, *sources], "target": list(targets)}
        ours = {"seed_everything": seed, "data": {"init_args": domains}}
        project = {"run": {"project": self.name}}
        own = dict(self.per_task).get(settings_of or task, {})
        return merge(project, row.config, own, dict(self.settings), row.control or {}, ours)

    def with_settings(self, settings: Mapping[str, Any]) -> "Table":
        """The table with an overlay on every cell.

        Raises:
            UserError: if it sets the source or the target.
        """
        check_parts("--set", settings)
        return replace(self, settings=tuple(settings.items()))

    def with_selection(self, select: Sequence[str], allow_oracle: bool) -> "Table":
        """The table with other selection criteria. An empty list keeps its own.

        Raises:
            UserError: if one is ``oracle`` and that is not allowed, or :data:`LEFT_OUT` and a task has but one source,
                or one run would need the settings of two tasks, or the target has classes of its own.
        """
        table = replace(self, select=tuple(select) or self.select, allow_oracle=self.allow_oracle or allow_oracle)
        if "oracle" in table.select and not table.allow_oracle:
            raise UserError(
                'selecting by "oracle" reads target labels: say allow_oracle: true in the table, or --allow-oracle'
            )
        if LEFT_OUT in table.select:
            table._check_left_out()
        return table

    def _check_left_out(self) -> None:
        if any(has_classes_of_the_target(config) for row in self.rows for config in self._configs(row)):
            raise UserError(
                f'selecting by "{LEFT_OUT}" would score the left-out source on classes that only the target has '
                "(data.label_sets), with their labels: take another criterion"
            )
        own = dict(self.per_task)
        served: dict[str, str] = {task: task for task in self.tasks}
        for task in self.tasks:
            if len(split_task(task)[0]) < 2:
                raise UserError(f'selecting by "{LEFT_OUT}" trains without each source in turn: {task} has but one')
            for helper in self.without_each_source(task).values():
                other = served.setdefault(helper, task)
                if own.get(other, {}) != own.get(task, {}):
                    raise UserError(
                        f'selecting by "{LEFT_OUT}" needs the run {helper} for {other} and for {task}, '
                        "but per_task gives the two different settings"
                    )

    def only(self, rows: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]) -> "Table":
        """The part of the table with these rows, tasks and seeds. An empty list means all.

        A row brings its control, and the row from whose runs it starts.

        Raises:
            UserError: if one of them is not in the table.
        """
        wanted_tasks = ["->".join(",".join(side) for side in split_task(task)) for task in tasks]
        for row in rows:
            choose("row", row, [one.name for one in self.rows])
        for task in wanted_tasks:
            choose("task", task, self.tasks)
        for seed in seeds:
            choose("seed", str(seed), [str(one) for one in self.seeds])
        wanted = {*rows, *(row.controlled_by for row in self.rows if row.controlled_by and row.name in rows)}
        starts = starts_of(self.rows)
        kept = wanted.union(*(starts[name] for name in wanted))
        brought = f", with what they start from: {named(*sorted(kept - wanted))}" if kept - wanted else ""
        said = {
            "rows": f"{named(*rows)}{brought}",
            "tasks": ", ".join(wanted_tasks),
            "seeds": ", ".join(str(seed) for seed in seeds),
        }
        return replace(
            self,
            rows=tuple(row for row in self.rows if not rows or row.name in kept or row.control_of in wanted),
            tasks=tuple(task for task in self.tasks if not tasks or task in wanted_tasks),
            seeds=tuple(seed for seed in self.seeds if not seeds or seed in seeds),
            narrowed="; ".join(f"{kind} {names}" for kind, names in said.items() if names),
        )


def starts_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """By row, the chain of rows that it starts from. A circle ends where it closes."""
    start = {row.name: row.start for row in rows}
    found: dict[str, list[str]] = {}
    for name in start:
        found[name] = []
        following = start[name]
        while following is not None and following not in found[name]:
            found[name].append(following)
            following = start[following]
    return found
