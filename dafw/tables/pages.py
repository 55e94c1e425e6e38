"""Writes all files of a table into ``<root>/tables/<name>/``."""

import io
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dafw.errors import warning_that_names
from dafw.files import write_atomically
from dafw.tables.html import render_html
from dafw.tables.render import render_cells, render_csv, render_latex, render_markdown
from dafw.tables.sheet import Sheet
from dafw.tables.store import Store


def write_pages(sheet: Sheet, store: Store, root: Path) -> Path:
    """Writes ``table.md``, ``table.tex``, ``table.csv``, ``cells.csv``, the plots and ``index.html``.

    Returns:
        The HTML page.
    """
    folder = root / "tables" / store.table.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "table.md", render_markdown(sheet))
    write_atomically(folder / "table.tex", render_latex(sheet))
    write_atomically(folder / "table.csv", render_csv(sheet))
    write_atomically(folder / "cells.csv", render_cells(store))
    pictures = _pictures(sheet, store, folder)
    write_atomically(folder / "index.html", render_html(sheet, store, folder, pictures))
    return folder / "index.html"


def _pictures(sheet: Sheet, store: Store, folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """By caption, a light and a dark PNG. The light ones also become files. Empty if there is nothing to draw."""
    if not store.results:
        return {}
    from dafw.plots import histories, table_bars

    metric = store.table.metric
    drawn: dict[str, tuple[str, Callable[..., Any], Any]] = {}
    dots = _dots(sheet)
    if dots:
        said = "dots are means over seeds, whiskers one std; hollow: the method's control; ticks: published."
        drawn[f"At a glance: Checkpoint {sheet.sections[0].criterion}; {said}"] = ("table.png", table_bars, dots)
    series = _series(store)
    if series:
        said = "The target's test metric at each validation, mean and one std over seeds; nothing is selected by it."
        drawn[f"Over training: {said}"] = ("training.png", histories, series)
    pictures = {}
    for caption, (name, draw, given) in drawn.items():
        with warning_that_names(f"{name} could not be drawn"):
            light, dark = (_png(draw(given, metric=metric, theme=theme)) for theme in ("light", "dark"))
            (folder / name).write_bytes(light)
            pictures[caption] = light, dark
    return pictures


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _dots(sheet: Sheet) -> list[Any]:
    from dafw.plots import Dot

    return [
        Dot(line.row, task, value.mean, value.std, line.kind)
        for line in sheet.sections[0].lines
        for task, value in zip(sheet.columns, line.values, strict=True)
        if value is not None and line.kind in ("method", "control", "published") and "->" in task
    ]


def _series(store: Store) -> dict[str, dict[str, tuple[list[int], list[float], list[float]]]]:
    """``{task: {method: (steps, means, stds)}}`` over the seeds with a validation at a step, without controls."""
    table = store.table
    series: dict[str, dict[str, tuple[list[int], list[float], list[float]]]] = {}
    for task in table.tasks:
        for row in table.rows:
            by_step: dict[int, list[float]] = {}
            for seed in table.seeds:
                result = store.get(row.name, task, seed) if row.control_of is None else None
                for one in result.run.history if result is not None else ():
                    scores = [one.test.get(name, {}).get(table.metric) for name in result.run.target] if result else []
                    known = [100 * score for score in scores if score is not None]
                    if known and len(known) == len(scores):
                        by_step.setdefault(one.step, []).append(fmean(known))
            if by_step:
                steps = sorted(by_step)
                means = [fmean(by_step[step]) for step in steps]
                stds = [stdev(by_step[step]) if len(by_step[step]) > 1 else 0.0 for step in steps]
                series.setdefault(task, {})[row.name] = (steps, means, stds)
    return series
