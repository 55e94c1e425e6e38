"""Renders a table as one page that needs no other file and no network, and to show the table no script."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dafw.escape import html
from dafw.tables.caption import duration
from dafw.tables.details import DETAILS, LEAST, Detail, details, links
from dafw.tables.fields import target_columns
from dafw.tables.further import Further
from dafw.tables.render import NONE, blocks, headings, marks_of
from dafw.tables.sheet import Line, Sheet, Value
from dafw.tables.store import Store
from dafw.tables.thumbnails import SmallPictures, embedded, thumbnails

MOST_BYTES = 9_500_000
"""Size of a page that mail servers still carry, and phones open."""
MOST_DETAILS = 6_000_000
"""Letters of the curves, configurations and logs, at most."""
END = 1000
"""Bytes of the end of the page that are neither data nor pictures nor script, at most."""
SUMMARIES = {"average": "sum average", "worst": "sum"}
CLASSES = {
    "method": "method",
    "published": "published",
    "minus published": "published",
    "control": "control",
    "minus control": "gain",
}


def render_html(
    sheet: Sheet,
    store: Store,
    folder: Path,
    pictures: Mapping[str, tuple[bytes, bytes]],
    further: Sequence[Further] = (),
) -> str:
    """The page.

    Args:
        sheet: the table.
        store: its runs.
        folder: where the page will lie; links to run directories are relative to it.
        pictures: ``{caption: (light PNG, dark PNG)}``, embedded.
        further: small tables below them.
    """
    environment = _environment()
    style, script = _source("page.css"), _source("charts.js") + _source("page.js")
    shown = blocks(sheet)
    lines = [line for _, _, found in shown for line in found]
    small = SmallPictures(folder)
    given = {
        "title": sheet.title,
        "summary": _summary(store),
        "gone": _gone(store),
        "missing": sheet.missing,
        "blocks": [_block(store, *block) for block in shown],
        "blank": NONE,
        "caption": (*sheet.caption, *_colours(lines)),
        "pictures": [_picture(caption, *both, small) for caption, both in pictures.items()],
        "further": further,
        "runs": list(_runs(store, folder)),
        "criteria": store.table.select,
        "style": Markup(style),
        "style_hash": _digest(style),
        "script_hash": _digest(script),
    }
    page = environment.get_template("page.html").render(**given)
    detail, data = _details(store, folder)
    room = MOST_BYTES - len((page + data + script).encode()) - END
    of_runs, left_out = thumbnails(store, small, room)
    small.tidy()
    end = {"data": data, "thumbnails": _json(of_runs), "left_out": _left_out(detail, left_out)}
    return f"{page}\n{environment.get_template('end.html').render(**end, script=Markup(script))}"


@cache
def _environment() -> Environment:
    """Every value becomes text: markup is escaped, and control characters are spelt out."""
    return Environment(
        loader=PackageLoader("dafw.tables"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(html(value)),
    )


@cache
def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _digest(text: str) -> str:
    """By which the page's policy allows its own style and script, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: Any) -> Markup:
    """JSON inside of a script element, which no text can end."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _details(store: Store, folder: Path) -> tuple[Detail, Markup]:
    """What the script knows, with as much detail as fits."""
    for detail in DETAILS:
        if _is_too_much(store, folder, detail):
            continue
        data = _json(details(store, folder, detail))
        if len(data.encode()) <= MOST_DETAILS:
            return detail, data
    return LEAST, data


def _is_too_much(store: Store, folder: Path, detail: Detail) -> bool:
    """Whether the runs of the first seed say that all runs would not fit: a large table is then not read twice."""
    first = store.table.seeds[0]
    count = sum(seed == first for _, _, seed in store.results)
    if detail == LEAST or count in (0, len(store.results)):
        return False
    size = len(_json(details(store, folder, detail, (first,))).encode())
    return size * len(store.results) / count > 1.1 * MOST_DETAILS


def _left_out(detail: Detail, pictures: int) -> str:
    """Says what the page would have if it were not too large."""
    sentences = []
    if detail != DETAILS[0]:
        points = f"curves have at most {detail.points} points" if detail.points else "runs have no curves here"
        sentences.append(f"{points}, and logs at most {detail.log} letters".capitalize())
    if pictures:
        sentences.append(f"{pictures:,} pictures of runs are left out; they are in plots/ of each run directory")
    size = f"The page stays below {round(MOST_BYTES / 1e6)} MB. "
    return size + "".join(f"{said}. " for said in sentences).strip() if sentences else ""


def _summary(store: Store) -> str:
    table = store.table
    methods = len([row for row in table.rows if row.control_of is None])
    sizes = ((methods, "methods"), (len(table.tasks), "tasks"), (len(table.seeds), "seeds"))
    grid = " \u00d7 ".join(f"{size} {name if size != 1 else name[:-1]}" for size, name in sizes)
    return f"{grid} · {len(store.results)} of {len(table.runs())} runs done"


def _gone(store: Store) -> str:
    """Says that there is no run at all; empty if there is one."""
    return "" if store.results or store.broken else "No run of this table is there yet: dafw table run makes them."


def _colours(lines: list[Line]) -> list[str]:
    """Explains the colours that are there."""
    gains = {value.direction for line in lines if line.kind == "minus control" for value in line.values if value}
    said = {1: "green: the 95 % interval of minus control lies above 0", -1: "red: it lies below 0"}
    alone = {-1: "red: the 95 % interval of minus control lies below 0"} if 1 not in gains else {}
    found = [(said | alone)[direction] for direction in (1, -1) if direction in gains]
    return [f"{'; '.join(found)}.".capitalize()] if found else []


def _block(store: Store, heading: str, columns: tuple[str, ...], lines: tuple[Line, ...]) -> dict[str, Any]:
    """A heading, its columns, and the lines in groups that stay together: a method and what belongs to it."""
    groups: list[list[dict[str, Any]]] = []
    for line in lines:
        if line.kind == "method" or not groups:
            groups.append([])
        cells = [_cell(store, line, *one) for one in zip(columns, line.values, strict=True)]
        groups[-1].append({"kind": CLASSES[line.kind], "label": line.label, "marks": marks_of(line), "cells": cells})
    heads = [
        {"name": _arrow(short), "attributes": _attributes({"class": SUMMARIES.get(name, "")})}
        for name, short in zip(columns, headings(columns), strict=True)
    ]
    return {
        "heading": heading,
        "by_task": not set(_tasks(store)).isdisjoint(columns),
        "columns": heads,
        "groups": groups,
    }


def _cell(store: Store, line: Line, column: str, value: Value | None) -> dict[str, Any]:
    kinds = [SUMMARIES.get(column)]
    if value is None:
        kinds.append("none")
    elif line.kind == "minus control" and value.direction:
        kinds.append("up" if value.direction > 0 else "down")
    found = {"class": " ".join(filter(None, kinds)), "title": value.note if value is not None else ""}
    row, task = _rows(store).get((line.kind, line.row)), _tasks(store).get(column)
    if row is not None and task is not None:
        found["data-cell"] = f"{row},{task}"
    return {"attributes": _attributes(found), "value": value}


def _rows(store: Store) -> dict[tuple[str, str], int]:
    """By kind and row of a line, the position of the row whose runs it shows."""
    rows = list(enumerate(store.table.rows))
    return {("control", row.control_of): number for number, row in rows if row.control_of is not None} | {
        ("method", row.name): number for number, row in rows if row.control_of is None
    }


def _tasks(store: Store) -> dict[str, int]:
    """By column, the position of its task. The summaries have none."""
    tasks = store.table.tasks
    targets = {column: tasks.index(task) for column, (task, _) in target_columns(tasks).items()}
    return targets | {task: number for number, task in enumerate(tasks)}


def _attributes(given: Mapping[str, str]) -> Markup:
    return Markup("".join(f' {name}="{html(value)}"' for name, value in given.items() if value != ""))


def _arrow(task: str) -> str:
    return task.replace("->", " \u2192 ").replace(",", ", ")


def _picture(caption: str, light: bytes, dark: bytes, small: SmallPictures) -> dict[str, Any]:
    heading, _, said = caption.partition(": ")
    return {
        "heading": heading,
        "said": said,
        "light": embedded(light, small),
        "dark": embedded(dark, small),
        "drawn": heading == "Over training",
    }


def _runs(store: Store, folder: Path) -> Iterator[dict[str, Any]]:
    criteria = store.table.select
    for cell in store.table.runs():
        result = store.get(cell.row, cell.task, cell.seed)
        scores = [store.scores(cell.row, cell.task, cell.seed, name) for name in criteria]
        yield {
            "row": cell.row,
            "task": _arrow(cell.task),
            "seed": cell.seed,
            "numbers": [f"{fmean(100 * score for score in one.values()):.2f}" if one else NONE for one in scores],
            "time": duration(result.run.seconds["total"]) if result is not None else NONE,
            "links": links(store.directories[cell.row, cell.task, cell.seed], folder),
        }
