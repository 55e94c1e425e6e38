"""Finds mistakes in the rows of a table before the first run is made."""

from typing import Any

from dafw.errors import UserError, choose
from dafw.escape import named
from dafw.run.criteria import LEFT_OUT
from dafw.run.entry import inspect
from dafw.run.ranks import ranks_of
from dafw.tables.grid import Cell
from dafw.tables.overlay import merge
from dafw.tables.store import Store

FREE = ("last", "oracle", LEFT_OUT)
"""Criteria that choose by other means than a score that each run records."""


def check_runs(store: Store) -> None:
    """Makes the method and the data of each row that has a run to make, and looks there for what is printed.

    A row is made once, and once more for each task with settings of its own. On its other tasks, the names of the
    domains are compared with those that the data has.

    Raises:
        UserError: naming the row and the task with a mistake or without the metric, or the criterion that no run will
            record.
    """
    from dafw.run.given import start_comes_later  # imports torch

    own = dict(store.table.per_task)
    domains: dict[tuple[str, str], tuple[str, ...]] = {}
    known: set[str] = set()
    for cell in store.table.runs():
        if store.get(cell.row, cell.task, cell.seed) is not None:
            continue
        key = cell.row, cell.task if cell.task in own else ""
        try:
            ranks_of(cell.config)
            if key not in domains:
                with start_comes_later(cell.start is not None):
                    found = inspect(_with_network_of_start(cell))
                domains[key] = found.domains
                known.update(found.scores)
                _check_targets(cell, found.targets)
                if found.metrics:
                    for metric in store.table.metrics:
                        choose("metric", metric, found.metrics)
            for name in (name for side in cell.domains for name in side):
                choose("domain", name, domains[key])
        except UserError as error:
            raise UserError(f"{named(cell.row)} on {cell.task}: {error}") from error
    for criterion in store.table.select if domains else ():
        choose("selection criterion", criterion, [*FREE, *known, *_recorded(store)])


def _check_targets(cell: Cell, targets: tuple[str, ...]) -> None:
    """Checks that the task names all domains that a stream visits, since each has a column."""
    sources, asked = cell.domains
    if asked != targets:
        said = f"{','.join(sources)}->{','.join(targets)}"
        raise UserError(f"the stream (data.stream) visits {', '.join(targets)}: call the task {said}")


def _recorded(store: Store) -> set[str]:
    return {name for result in store.results.values() for name in result.criteria}


def _with_network_of_start(cell: Cell) -> dict[str, Any]:
    """The configuration of a cell. Without a network of its own it gets that of the run that it starts from."""
    given = cell.config["model"].get("init_args") or {}
    if cell.start is None or "network" in given:
        return cell.config
    start = _with_network_of_start(cell.start)["model"].get("init_args") or {}
    network = {"network": start["network"]} if "network" in start else {}
    return merge(cell.config, {"model": {"init_args": network}})
