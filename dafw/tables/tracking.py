"""A table in W&B: its numbers as tables, and its files as an artifact."""

import hashlib
import os
import re
from pathlib import Path
from typing import Literal

from dafw.errors import UserError
from dafw.tables.render import cells, numbers, render_csv
from dafw.tables.sheet import Sheet
from dafw.tables.store import Store

FILES = ("index.html", "table.md", "table.tex", "table.csv", "cells.csv")


def track_table(sheet: Sheet, store: Store, folder: Path, mode: Literal["offline", "online"]) -> None:
    """Logs the numbers and the files of a table as one W&B run of the table's project.

    The numbers are read from the results, so the runs themselves need no W&B, or may have been offline. A table whose
    numbers are the same is the same W&B run.

    Args:
        sheet: the table.
        store: its runs.
        folder: with its files, and where W&B writes.
        mode: ``offline`` needs neither account nor network. The environment variable ``WANDB_MODE`` wins over it.

    Raises:
        UserError: if W&B is switched off, is not installed or does not start.
    """
    from dafw.run.loggers import wandb_logger

    table = store.table
    state = hashlib.sha256(render_csv(sheet).encode()).hexdigest()[:8]
    tracker = wandb_logger(
        folder,
        mode=mode,
        project=table.name,
        group="table",
        name=f"table {table.folder}",
        run_id=f"table-{state}",
        config={"title": table.title, "tasks": list(table.tasks), "seeds": list(table.seeds), "caption": sheet.caption},
    )
    if tracker is None:
        off = f"WANDB_MODE is {os.environ['WANDB_MODE']}" if "WANDB_MODE" in os.environ else "it is not installed"
        raise UserError(f"W&B cannot log the table: {off}")
    import wandb

    try:
        run = tracker.experiment
        run.log({name: _as_table(rows) for name, rows in (("table", numbers(sheet)), ("cells", cells(store)))})
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"table-{table.folder}")[:128], type="table")
        for name in FILES:
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
    except Exception as error:
        tracker.fail(error)
    tracker.finish()


def _as_table(rows: list[list[object]]) -> object:
    """A W&B table. A column has one type there: numbers, with nothing where there is none; or text."""
    import wandb

    head, *lines = rows
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(head)
    numeric = [all(isinstance(value, int | float) or value == "" for value in column) for column in columns]
    data = [
        [
            (None if value == "" else value) if number else str(value)
            for value, number in zip(line, numeric, strict=True)
        ]
        for line in lines
    ]
    return wandb.Table(columns=[str(name) for name in head], data=data)
