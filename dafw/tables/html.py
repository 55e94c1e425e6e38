"""Renders a table as one static page, without scripts or other files. The reader's setting makes it light or dark."""

import base64
import os
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

from dafw.escape import html
from dafw.run.directory import CONFIG
from dafw.run.result import RESULT
from dafw.tables.caption import duration
from dafw.tables.render import NONE, blocks, marks_of
from dafw.tables.sheet import Line, Sheet, Value
from dafw.tables.store import Store

STYLE = """
:root { color-scheme: light dark; --paper: #f6f8fa; --card: #fff; --ink: #1f2328; --soft: #59636e; --line: #d0d7de;
  --good: #1a7f37; --bad: #cf222e; --link: #0969da; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9198a1;
  --line: #3d444d; --good: #3fb950; --bad: #f85149; --link: #4493f8; --band: #1c2129; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
.sub { color: var(--soft); margin: 0 0 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
thead th { font-weight: 600; border-bottom: 2px solid var(--line); }
thead th.sum, td.sum { border-left: 1px solid var(--line); }
td.sum + td.sum, th.sum + th.sum { border-left: 0; }
tbody th { font-weight: 600; }
tr.method > * { border-top: 1px solid var(--line); padding-top: .5rem; }
tbody tr.method:first-child > * { border-top: 0; }
tr.method td { font-weight: 600; }
tr.method td small, small { font-weight: 400; color: var(--soft); font-size: .82em; }
tbody tr:not(.method) > * { padding-top: .14rem; padding-bottom: .14rem; }
tbody tr:not(.method) th { font-weight: 400; padding-left: 2rem; color: var(--soft); }
tbody tr:not(.method) td, tbody td.none { color: var(--soft); }
tr.gain td, tr.gain th { color: var(--ink) !important; }
tr.gain td.up { color: var(--good) !important; } tr.gain td.down { color: var(--bad) !important; }
.tag { font-size: .72rem; font-weight: 600; border: 1px solid var(--bad); color: var(--bad); border-radius: 999px;
  padding: 0 .5em; margin-left: .4em; vertical-align: 1px; }
ul.caption { color: var(--soft); padding-left: 1.1rem; margin: .8rem 0; font-size: .9rem; }
.missing { border-left: 4px solid var(--bad); background: var(--card); padding: .6rem 1rem; margin: 1rem 0;
  border-radius: 4px; }
.missing ul { margin: .2rem 0; padding-left: 1.1rem; columns: 22rem; }
figure { margin: 0; padding: 1rem; } img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; }
details { margin-top: 2rem; } summary { cursor: pointer; font-weight: 600; font-size: 1.05rem; margin-bottom: .6rem; }
.runs td, .runs th { font-size: .86rem; text-align: left; padding: .25rem .7rem; } .runs td.num { text-align: right; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
@media print { body { background: #fff; } .card { border: 0; } details { display: none; } }
"""
FILES = (RESULT, CONFIG, "metrics.csv", "log.txt")
CLASSES = {
    "method": "method",
    "published": "published",
    "minus published": "published",
    "control": "control",
    "minus control": "gain",
}


def render_html(sheet: Sheet, store: Store, folder: Path, pictures: dict[str, tuple[bytes, bytes]]) -> str:
    """The page.

    Args:
        sheet: the table.
        store: its runs, for the list at the end.
        folder: where the page will lie; links to run directories are relative to it.
        pictures: ``{caption: (light PNG, dark PNG)}``, embedded.
    """
    title = html(sheet.title)
    parts = [f"<h1>{title}</h1>", f'<p class="sub">{html(_summary(store))}</p>']
    if sheet.missing:
        names = "".join(f"<li>{html(name)}</li>" for name in sheet.missing)
        parts.append(f'<div class="missing"><b>No number ({len(sheet.missing)})</b><ul>{names}</ul></div>')
    for heading, columns, lines in blocks(sheet):
        parts += [f"<h2>{html(heading)}</h2>", _table(columns, lines)]
    colours = (
        ["Green and red: the 95 % interval of minus control lies above or below 0."]
        if any('class="gain"' in part for part in parts)
        else []
    )
    said = "".join(f"<li>{html(one)}</li>" for one in (*sheet.caption, *colours))
    parts.append(f'<ul class="caption">{said}</ul>')
    for caption, (light, dark) in pictures.items():
        heading, _, said = caption.partition(": ")
        parts += [f"<h2>{html(heading)}</h2>", _picture(said, light, dark)]
    parts.append(_runs(store, folder))
    body = "\n".join(parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _summary(store: Store) -> str:
    table = store.table
    methods = len([row for row in table.rows if row.control_of is None])
    sizes = ((methods, "methods"), (len(table.tasks), "tasks"), (len(table.seeds), "seeds"))
    grid = " \u00d7 ".join(f"{size} {name if size != 1 else name[:-1]}" for size, name in sizes)
    return f"{grid} · {len(store.results)} of {len(table.runs())} runs done"


def _table(columns: tuple[str, ...], lines: tuple[Line, ...]) -> str:
    sums = [name in ("average", "worst") for name in columns]
    marks = [' class="sum"' if one else "" for one in sums]
    head = "".join(f"<th{mark}>{_arrow(name)}</th>" for name, mark in zip(columns, marks, strict=True))
    rows = []
    for line in lines:
        tag = "".join(f' <span class="tag">{mark}</span>' for mark in marks_of(line))
        name = html(line.label)
        cells = "".join(_cell(line, value, one) for value, one in zip(line.values, sums, strict=True))
        rows.append(f'<tr class="{CLASSES[line.kind]}"><th scope="row">{name}{tag}</th>{cells}</tr>')
    return (
        f'<div class="card"><table><thead><tr><th>method</th>{head}</tr></thead><tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def _arrow(task: str) -> str:
    return html(task.replace("->", " → ").replace(",", ", "))


def _cell(line: Line, value: Value | None, is_sum: bool) -> str:
    classes = ["sum"] if is_sum else []
    if value is None:
        return f'<td class="{" ".join([*classes, "none"])}">{NONE}</td>'
    if line.kind == "minus control" and value.direction:
        classes.append("up" if value.direction > 0 else "down")
    title = f' title="{html(value.note)}"' if value.note else ""
    spread = f" <small>{value.spread}</small>" if value.spread else ""
    count = f" <small>({value.count})</small>" if value.count else ""
    return f'<td class="{" ".join(classes)}"{title}>{value.number}{spread}{count}{value.mark}</td>'


def _picture(caption: str, light: bytes, dark: bytes) -> str:
    day, night = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (light, dark))
    said = html(caption)
    return (
        f'<figure class="card"><picture><source media="(prefers-color-scheme: dark)" srcset="{night}">'
        f'<img alt="{said}" src="{day}"></picture><figcaption>{said}</figcaption></figure>'
    )


def _runs(store: Store, folder: Path) -> str:
    criteria = store.table.select
    head = "".join(f"<th>{html(name)}, %</th>" for name in criteria)
    rows = []
    for cell in store.table.runs():
        directory = store.directories[cell.row, cell.task, cell.seed]
        result = store.get(cell.row, cell.task, cell.seed)
        links = []
        pictures = sorted(path.relative_to(directory).as_posix() for path in directory.glob("plots/*.png"))
        for name in (*FILES, *pictures):
            if (directory / name).is_file():
                href = html(quote(Path(os.path.relpath(directory / name, folder)).as_posix(), safe="/+"))
                links.append(f'<a href="{href}">{html(name.removeprefix("plots/"))}</a>')
        numbers = []
        for criterion in criteria:
            scores = store.scores(cell.row, cell.task, cell.seed, criterion) or {}
            percent = f"{fmean(100 * score for score in scores.values()):.2f}" if scores else NONE
            numbers.append(f'<td class="num">{percent}</td>')
        seconds = duration(result.run.seconds["total"]) if result is not None else NONE
        rows.append(
            f"<tr><td>{html(cell.row)}</td><td>{_arrow(cell.task)}</td><td>{cell.seed}</td>{''.join(numbers)}"
            f'<td class="num">{seconds}</td><td>{" · ".join(links) or "not started"}</td></tr>'
        )
    return (
        f'<details><summary>Runs ({len(rows)})</summary><div class="card"><table class="runs"><thead><tr>'
        f"<th>method</th><th>task</th><th>seed</th>{head}<th>time</th><th>files</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
