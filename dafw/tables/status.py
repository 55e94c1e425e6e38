"""The state of each run of a table."""

from pathlib import Path
from typing import Literal

from dafw.escape import terminal
from dafw.run.directory import began, is_running
from dafw.run.worker import FAILED, LOG, last_line
from dafw.tables.queue import Queued, job_of, queue
from dafw.tables.store import Store

State = Literal["done", "running", "failed", "interrupted", "missing"]
STATES: tuple[State, ...] = ("done", "running", "failed", "interrupted", "missing")


def states(store: Store) -> dict[str, State]:
    """The state of every cell, by its label.

    The last attempt of a ``failed`` run ended with an error. An ``interrupted`` run goes on from its last checkpoint. A
    ``missing`` run never began, even if ``dafw test`` wrote into its directory.
    """
    found: dict[str, State] = {}
    for cell in store.table.runs():
        directory = store.directories[cell.row, cell.task, cell.seed]
        if store.get(cell.row, cell.task, cell.seed) is not None:
            found[cell.label] = "done"
        elif is_running(directory):
            found[cell.label] = "running"
        elif (directory / FAILED).exists():
            found[cell.label] = "failed"
        else:
            found[cell.label] = "interrupted" if began(directory) else "missing"
    return found


def describe(store: Store) -> str:
    """A line of counts, then the cells that are not done, by state, and the rows that other code or other data made.

    Of a run that a cluster makes it says the job, and of one that failed the reason and its log.
    """
    found = states(store)
    cells = {cell.label: cell for cell in store.table.runs()}
    places = {label: store.directories[cell.row, cell.task, cell.seed] for label, cell in cells.items()}
    jobs = queue() if any(job_of(places[label]) for label, one in found.items() if one != "done") else None
    counts = {state: sum(one == state for one in found.values()) for state in STATES}
    lines = [f"{store.table.name}: " + ", ".join(f"{counts[state]} {state}" for state in STATES)]
    for state in STATES[1:]:
        lines += [
            f"{state:<12} {cells[label].line}{_more(state, places[label], jobs or {})}"
            for label, one in found.items()
            if one == state
        ]
    lines += [f"broken: {reason}" for reason in store.broken.values()]
    lines += [f"{said}: dafw table run --rerun stale makes them again" for said in store.origins]
    return "\n".join(map(terminal, lines))


def _more(state: State, directory: Path, jobs: dict[str, Queued]) -> str:
    """The job of a run and why it failed, as far as they are known."""
    number, said = job_of(directory), []
    if number in jobs:
        said.append(f"job {number} is {jobs[number]}")
    if state == "failed":
        reason = last_line((directory / FAILED).read_text(encoding="utf-8", errors="replace"))
        said.append(f"{reason}{f', job {number}' if number and number not in jobs else ''} (see {directory / LOG})")
    return f": {'; '.join(said)}" if said else ""
