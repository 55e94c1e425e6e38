"""Writes all files of a table into ``<root>/tables/<name>/``."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from dafw.errors import UserError, warning_that_names
from dafw.files import remove_abandoned, replacing, write_atomically
from dafw.run.directory import EXAMPLES
from dafw.tables.costs import costs
from dafw.tables.criteria import criteria
from dafw.tables.details import control_rows
from dafw.tables.estimates import EstimatePoint, draw_estimates, estimate_points
from dafw.tables.further import Further
from dafw.tables.further_estimates import estimate_table
from dafw.tables.html import render_html
from dafw.tables.render import render_cells, render_csv, render_latex, render_markdown
from dafw.tables.sheet import Sheet
from dafw.tables.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
Curve = tuple[list[int], list[float], list[float]]
"""Steps, means and standard deviations."""
Draw = Callable[[Any, str, Theme], "Figure"]
PLAIN = ("SourceOnly", "ERM")
"""Methods that train on labelled sources alone."""
MOST_COLUMNS, MOST_IMAGES = 5, 2
"""Rows of a table, and images of a target, whose predictions the page shows."""
PAGE, CELLS = "index.html", "cells.csv"
"""Names of the page, and of the file with a line for each run."""
PLOTS = Path(__file__).resolve().parents[1] / "plots"
"""The code that draws, on which a picture depends."""


def write_pages(sheet: Sheet, store: Store, root: Path, tests: Sequence[Further] = ()) -> Path:
    """Writes ``table.md``, ``table.tex``, ``table.csv``, ``cells.csv``, the plots and ``index.html``.

    Args:
        sheet: the table.
        store: its runs.
        root: folder of the run directories.
        tests: small tables for the page, which has the criteria and the costs besides.

    Returns:
        The HTML page.
    """
    folder = root / "tables" / store.table.folder
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)  # a picture that has not changed is not written, which would remove what was left of it
    write_atomically(folder / "table.md", render_markdown(sheet))
    write_atomically(folder / "table.tex", render_latex(sheet))
    write_atomically(folder / "table.csv", render_csv(sheet))
    write_atomically(folder / CELLS, render_cells(store))
    pictures = _pictures(sheet, store, folder)
    further = (*tests, *criteria(store), *estimate_table(_estimates(store)), *costs(store))
    write_atomically(folder / PAGE, render_html(sheet, store, folder, pictures, further))
    return folder / PAGE


def check_page(store: Store, root: Path) -> None:
    """Refuses to replace a page with numbers by an empty one.

    Raises:
        UserError: if the table has a page with the numbers of runs, and none of its runs is there any more.
    """
    page = root / "tables" / store.table.folder / PAGE
    with suppress(OSError):
        if not (store.results or store.broken) and (page.parent / CELLS).read_bytes().count(b"\n") > 1:
            raise UserError(
                f"the runs behind {page} are gone, so it stays as it is: remove it, or make them with dafw table run"
            )


def _pictures(sheet: Sheet, store: Store, folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """By caption, a light and a dark PNG, which become files too. Empty if there is nothing to draw."""
    if not store.results:
        return {}
    metric = store.table.metric
    wanted: list[tuple[str, str, Draw, Any]] = []
    if dots := _dots(sheet):
        wanted.append((f"At a glance: {_said_of_dots(sheet, dots)}", "table.png", _bars, dots))
    if series := _series(store):
        said = _said_of_curves(series, own := _own_controls(store))
        wanted.append((f"Over training: {said}", "training.png", _curves, (series, own)))
    if points := [astuple(point) for point in _estimates(store)]:
        said = (
            "Without labels: the estimate over the accuracy by target labels; whiskers are ranges; equal on the line."
        )
        wanted.append((said, "estimates.png", _scatter, points))
    if examples := _examples(store):
        sure = "; scores above 0.5" if examples["kind"] == "boxes" else ""
        said = (
            f"test images of each target at seed {store.table.seeds[0]} with the labels and what each row found{sure}."
        )
        wanted.append((f"On the same images: {said}", "examples.png", _images, examples))
    found = {}
    for caption, name, draw, given in wanted:
        with warning_that_names(f"{name} could not be drawn"):
            found[caption] = _both(folder / name, draw, given, metric)
    return found


def _bars(dots: list[tuple[Any, ...]], metric: str, theme: Theme) -> "Figure":
    from dafw.plots import Dot, table_bars

    return table_bars([Dot(*one) for one in dots], metric=metric, theme=theme)


def _curves(given: tuple[Mapping[str, Mapping[str, Curve]], dict[str, str]], metric: str, theme: Theme) -> "Figure":
    from dafw.plots import histories

    series, controls = given
    return histories(series, metric=metric, theme=theme, controls=controls)


def _scatter(points: list[tuple[Any, ...]], metric: str, theme: Theme) -> "Figure":
    return draw_estimates([EstimatePoint(*one) for one in points], theme)


def _estimates(store: Store) -> list[EstimatePoint]:
    """The estimates of accuracy that the runs kept."""
    return estimate_points(store.results)


def _images(examples: dict[str, Any], metric: str, theme: Theme) -> "Figure":
    from dafw.plots import same_images

    return same_images(examples, theme=theme)


def _both(path: Path, draw: Draw, given: Any, metric: str) -> tuple[bytes, bytes]:
    """A light and a dark PNG. A file that shows the same already is not drawn anew.

    Drawing takes most of the time of a large table.

    Args:
        path: of the light PNG. The dark one lies beside it.
        draw: makes the figure.
        given: what it draws, in plain values.
        metric: name of the axis.
    """
    sources = [file.read_bytes() for file in sorted(PLOTS.glob("*.py"))]
    content = json.dumps([given, metric, version("matplotlib")]).encode()
    key = hashlib.sha256(b"".join([content, *sources])).hexdigest()
    return (
        _png(path, key, lambda: draw(given, metric, "light")),
        _png(path.with_stem(f"{path.stem}-dark"), key, lambda: draw(given, metric, "dark")),
    )


def _png(path: Path, key: str, draw: "Callable[[], Figure]") -> bytes:
    """The PNG in a file, which is drawn unless it has this key."""
    if _key_of(path) != key:
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", metadata={"Comment": key})
        with replacing(path) as file:
            file.write(buffer.getvalue())
    return path.read_bytes()


def _key_of(path: Path) -> str:
    """The key of what a PNG shows; empty if there is no such file or it is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return str(image.info.get("Comment", ""))
    except (OSError, SyntaxError):
        return ""


def _said_of_dots(sheet: Sheet, dots: Sequence[tuple[Any, ...]]) -> str:
    """Explains what is drawn, and no more."""
    kinds = {kind for *_, kind in dots}
    several = any(std is not None and kind != "published" for *_, std, kind in dots)
    parts = [
        f"Checkpoint {sheet.sections[0].criterion}",
        "dots are means over seeds, whiskers one std" if several else "dots are of one seed",
        "hollow: the method's control" if "control" in kinds else "",
        "ticks: published" if "published" in kinds else "",
    ]
    return f"{'; '.join(filter(None, parts))}."


def _said_of_curves(series: Mapping[str, Mapping[str, Curve]], controls: Mapping[str, str]) -> str:
    curves = [curve for by_row in series.values() for curve in by_row.values()]
    spread = ", mean and one std over seeds" if any(std for curve in curves for std in curve[2]) else ""
    dashed = (
        " Dashed: the method's control." if any(row in controls for rows in series.values() for row in rows) else ""
    )
    return f"The target's test metric at each validation (ticks){spread}; nothing is selected by it.{dashed}"


def _dots(sheet: Sheet) -> list[tuple[str, str, float, float | None, str]]:
    """The arguments of :class:`dafw.plots.Dot`."""
    return [
        (line.row, task, value.mean, value.std, line.kind)
        for line in sheet.sections[0].lines
        for task, value in zip(sheet.columns, line.values, strict=True)
        if value is not None and line.kind in ("method", "control", "published") and "->" in task
    ]


def _examples(store: Store) -> dict[str, Any]:
    """What :func:`dafw.plots.same_images` draws, by task and target, of the first seed; empty if there is nothing.

    The rows are the first one of a method that trains on the source alone, one that no other row starts from if there
    is any, and then the first methods with a control, each behind it, as many as fit on a page.
    """
    table = store.table
    controls = {row.name: row.controlled_by for row in table.rows if row.controlled_by}
    controls |= {row.control_of: row.name for row in table.rows if row.control_of is not None}
    starts = {row.start for row in table.rows}
    plain = sorted((row.name for row in table.rows if _is_plain(store, row.name)), key=starts.__contains__)
    pairs = [name for row in table.rows if row.name in controls for name in (controls[row.name], row.name)]
    shown = list(dict.fromkeys([*plain[:1], *pairs]))[:MOST_COLUMNS]
    domains: dict[str, dict[str, list[Any]]] = {}
    shared: dict[str, Any] = {}
    for task in table.tasks:
        found = {name: _kept(store, name, task) for name in shown}
        for name, one in found.items():
            shared |= {key: value for key, value in one.items() if key != "targets"}
            for target, images in one.get("targets", {}).items():
                where = task if len(one["targets"]) == 1 else f"{task}: {target}"
                domains.setdefault(where, {})[name] = images[:MOST_IMAGES]
    same = {where: columns for where, columns in domains.items() if list(columns) == shown}
    return {**shared, "domains": same} if same else {}


def _is_plain(store: Store, row: str) -> bool:
    """Whether a row is of a method that adapts nothing, with labels of the source alone."""
    runs = [result.run for (name, _, _), result in store.results.items() if name == row]
    return bool(runs) and all(run.method in PLAIN and not run.oracle for run in runs)


def _kept(store: Store, row: str, task: str) -> dict[str, Any]:
    """The examples that the run of the first seed kept; empty if it kept none, or they cannot be read."""
    path = store.directories[row, task, store.table.seeds[0]] / EXAMPLES
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and store.get(row, task, store.table.seeds[0]) is not None:
            return found
    return {}


def _own_controls(store: Store) -> dict[str, str]:
    """By row that is the control of one method alone, this method."""
    methods: dict[str, list[str]] = {}
    for method, control in control_rows(store).items():
        methods.setdefault(control, []).append(method)
    return {control: of[0] for control, of in methods.items() if len(of) == 1}


def _series(store: Store) -> dict[str, dict[str, Curve]]:
    """``{task: {row: (steps, means, stds)}}`` over the seeds with a validation at a step."""
    table = store.table
    series: dict[str, dict[str, Curve]] = {}
    for task in table.tasks:
        for row in table.rows:
            by_step: dict[int, list[float]] = {}
            for seed in table.seeds:
                result = store.get(row.name, task, seed)
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
