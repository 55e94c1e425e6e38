"""Renders a sheet as terminal text, Markdown, LaTeX and CSV."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dafw import escape
from dafw.run.criteria import LEFT_OUT
from dafw.tables.costs import PEAKS, samples_per_second
from dafw.tables.fields import in_short
from dafw.tables.sheet import Line, Sheet, Value
from dafw.tables.statistics import lower_is_better
from dafw.tables.store import Store

NONE = "\u2013"
STYLES = {"method": "bold", "published": "cyan", "minus published": "dim cyan", "control": "dim", "minus control": ""}


def label(line: Line) -> str:
    """First field of a line. Lines below a method are indented. Target labels and other test samples are mentioned."""
    indent = "" if line.kind == "method" else "  "
    return "".join([indent, line.label, *(f" ({mark})" for mark in marks_of(line))])


def marks_of(line: Line) -> list[str]:
    """Text after a method's name: its runs use target labels, or other test samples for a prediction, or a protocol
    that is not that of the other rows.
    """
    marks = (
        ("oracle", line.oracle),
        ("transductive", line.transductive),
        ("other protocol", line.other_protocol),
    )
    return [name for name, holds in marks if holds and line.kind == "method"]


def blocks(sheet: Sheet) -> list[tuple[str, tuple[str, ...], tuple[Line, ...]]]:
    """Heading, columns and lines of each block: one for each criterion, then one with the criteria side by side."""
    found = [(part.heading, sheet.columns, part.lines) for part in sheet.sections]
    if sheet.by_criterion:
        over = "Average over tasks by checkpoint" if "average" in sheet.columns else "By checkpoint"
        found.append((over, sheet.criteria, sheet.by_criterion))
    return found


def headings(columns: Sequence[str]) -> tuple[str, ...]:
    """What stands above each column: a task of many domains in short, unless two columns would then read the same."""
    short = tuple(map(in_short, columns))
    return short if len(set(short)) == len(short) else tuple(columns)


def render_terminal(sheet: Sheet, console: Console) -> None:
    """Prints to the console. Columns that do not fit side by side go below."""
    if not console.is_terminal:
        console = Console(file=console.file, color_system=None, width=10_000)
    console.print(Text(escape.terminal(sheet.title), style="bold"))
    for heading, columns, lines in blocks(sheet):
        console.print(Text(f"\n{heading}", style="italic"))
        names = [Text(escape.terminal(label(line)), style=STYLES[line.kind]) for line in lines]
        heads = [Text(escape.terminal(column)) for column in headings(columns)]
        first = max([name.cell_len for name in names] + [0])
        widths = [
            max(heads[i].cell_len, *(len(value.text) if (value := line.values[i]) else 1 for line in lines))
            for i in range(len(columns))
        ]
        for chosen in _fit(widths, console.width - first - 2):
            table = RichTable(box=None, pad_edge=False, padding=(0, 1))
            table.add_column("", no_wrap=True)
            for i in chosen:
                table.add_column(heads[i], justify="right", no_wrap=True)
            for shown, line in zip(names, lines, strict=True):
                cells = [_styled(line, line.values[i]) for i in chosen]
                table.add_row(shown, *cells)
            console.print(table)
    console.print()
    for sentence in sheet.caption:
        console.print(Text(escape.terminal(sentence), style="dim"), soft_wrap=not console.is_terminal)
    for name in sheet.missing:
        console.print(Text(f"no number: {escape.terminal(name)}", style="yellow"), soft_wrap=True)


def _fit(widths: list[int], room: int) -> list[list[int]]:
    """Groups consecutive columns so that each group fits. A group has at least one column."""
    groups: list[list[int]] = [[]]
    used = 0
    for i, width in enumerate(widths):
        if groups[-1] and used + width + 2 > room:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += width + 2
    return groups


def _styled(line: Line, value: Value | None) -> Text:
    style = STYLES[line.kind]
    if line.kind == "minus control" and value is not None and value.direction:
        style = "green" if value.direction > 0 else "red"
    return Text(value.text if value is not None else NONE, style=style)


def render_markdown(sheet: Sheet) -> str:
    """GitHub-flavoured Markdown."""
    parts = [f"# {escape.markdown(sheet.title)}"]
    for heading, columns, lines in blocks(sheet):
        rows = [["method", *map(escape.markdown, headings(columns))], ["---", *("---:" for _ in columns)]]
        for line in lines:
            first = escape.markdown(label(line).strip())
            first = first if line.kind == "method" else f"&nbsp;&nbsp;{first}"
            rows.append([first, *(value.text if value is not None else NONE for value in line.values)])
        parts += [f"## {escape.markdown(heading)}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    parts.append("\n".join(map(escape.markdown_item, sheet.caption)))
    if sheet.missing:
        parts += ["No number:", "\n".join(map(escape.markdown_item, sheet.missing))]
    return "\n\n".join(parts) + "\n"


def render_latex(sheet: Sheet) -> str:
    """``table`` environments for the packages booktabs, graphicx (to fit the width) and fontenc with T1.

    The caption is one sentence. Below the table is what a reader needs for the numbers. Where they come from is in a
    comment. In each column the best number of a method is bold and the second underlined.
    """
    parts = []
    read = [said for said in sheet.caption if said not in sheet.provenance]
    metrics = [section.metric for section in sheet.sections]
    for number, (heading, columns, lines) in enumerate(blocks(sheet)):
        metric = metrics[number] if number < len(metrics) else metrics[0]
        ranked = [
            _best_and_second([line.values[i] for line in lines if _competes(line)], metric) for i in range(len(columns))
        ]
        body: list[str] = []
        for line in lines:
            if line.kind == "method" and body:
                body.append(r"\addlinespace")
            first = escape.latex(label(line).strip())
            first = first if line.kind == "method" else rf"\quad {first}"
            shown = ranked if _competes(line) else [("", "")] * len(columns)
            body.append(" & ".join([first, *map(_tex_value, line.values, shown)]) + r" \\")
        said = sheet.caption[0].partition(";")[0]
        said = f"{sheet.title}: {said[0].lower()}{said[1:]}{f'; {heading[0].lower()}{heading[1:]}' if number else ''}."
        marks = [
            "Bold: the highest mean of a method, underlined: the second, without rows that train on target labels."
        ]
        marks = [marks[0].replace("highest", "lowest")] if lower_is_better(metric) else marks
        notes = [*([f"{heading}."] if "last" not in heading else []), *read, *(marks if any(map(any, ranked)) else [])]
        tag = re.sub(r"[^\w.-]", "-", sheet.name) + (f"-{number}" if number else "")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}[t]",
                    r"\centering",
                    *(f"% {escape.latex(sentence)}" for sentence in sheet.provenance),
                    rf"\caption{{{escape.latex(said)}}}",
                    rf"\label{{tab:{tag}}}",
                    r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                    rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
                    r"\toprule",
                    " & ".join(["", *map(escape.latex, headings(columns))]) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}}",
                    r"\par\smallskip",
                    rf"\parbox{{\linewidth}}{{\footnotesize {escape.latex(' '.join(notes))}}}",
                    r"\end{table}",
                ]
            )
        )
    return "% needs booktabs, graphicx and [T1]{fontenc}\n" + "\n\n".join(parts) + "\n"


def _competes(line: Line) -> bool:
    """Whether a line may have the best number: that of a method which target labels do not train."""
    return line.kind == "method" and not line.oracle


def _best_and_second(values: Sequence[Value | None], metric: str) -> tuple[str, str]:
    """The best number and the next one, as they are printed; empty unless two methods have a number."""
    found = [value for value in values if value is not None]
    order = sorted(found, key=lambda value: value.mean, reverse=not lower_is_better(metric))
    numbers = list(dict.fromkeys(value.number for value in order)) if len(found) > 1 else []
    return (*numbers[:2], "", "")[0], (*numbers[:2], "", "")[1]


def _tex_value(value: Value | None, ranked: tuple[str, str]) -> str:
    if value is None:
        return "--"
    spread = rf" {{\scriptsize {escape.latex(value.spread)}}}" if value.spread else ""
    count = rf" {{\scriptsize ({value.count})}}" if value.count else ""
    number = escape.latex(value.number)
    if value.number in ranked:
        number = rf"\textbf{{{number}}}" if value.number == ranked[0] else rf"\underline{{{number}}}"
    return number + spread + count + escape.latex(value.mark)


def render_csv(sheet: Sheet) -> str:
    """CSV with a line for each number, see :func:`numbers`."""
    return escape.csv(numbers(sheet))


def numbers(sheet: Sheet) -> list[list[object]]:
    """A head, and a line for each number: criterion, row, kind of line, column, mean, interval and so on."""
    rows: list[list[object]] = [
        ["criterion", "row", "kind", "column", "mean", "std", "low", "high", "n", "mark", "note", "metric"]
    ]
    for section in sheet.sections:
        for line in section.lines:
            for column, value in zip(sheet.columns, line.values, strict=True):
                if value is not None:
                    std = "" if value.std is None else round(value.std, 4)
                    n = "" if value.n is None else value.n
                    front = [section.criterion, line.row, line.kind, column]
                    ends = ["", ""] if value.interval is None else [round(end, 4) for end in value.interval]
                    rows.append([*front, round(value.mean, 4), std, *ends, n, value.mark, value.note, section.metric])
    return rows


def render_cells(store: Store) -> str:
    """CSV with a line for each run, criterion and target, see :func:`cells`."""
    return escape.csv(cells(store))


def cells(store: Store) -> list[list[object]]:
    """A head, and a line for each run, criterion and target: percent, and what the run took and where it is.

    ``oracle`` says whether target labels trained this run, or any run of its row. Speed and peaks of memory are empty
    where nobody knows them.
    """
    heads = ["row", "task", "seed", "criterion", "domain", "percent", "oracle", "steps", "seconds", "directory"]
    oracles = store.oracles
    rows: list[list[object]] = [[*heads, "samples_per_second", *PEAKS]]
    for cell in store.table.runs():
        result = store.get(cell.row, cell.task, cell.seed)
        for criterion in (*result.criteria, LEFT_OUT) if result is not None else ():
            for domain, score in (store.scores(cell.row, cell.task, cell.seed, criterion) or {}).items():
                assert result is not None
                oracle = result.run.oracle or cell.row in oracles
                run = result.run
                found = [round(100 * score, 4), oracle, run.steps, run.seconds["total"], result.directory.name]
                speed = samples_per_second(run)
                found += ["" if speed is None else round(speed, 1), *(run.cost.get(name, "") for name in PEAKS)]
                rows.append([cell.row, cell.task, cell.seed, criterion, domain, *found])
    return rows
