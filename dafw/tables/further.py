"""Small tables below the main one, and how each format shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dafw import escape


@dataclass(frozen=True)
class Further:
    """A small table of text: its first column names rows.

    Attributes:
        title: its heading.
        columns: heads of the columns.
        lines: fields of each line, as many as columns.
        notes: sentences that say what the numbers are.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def further_terminal(parts: Sequence[Further], console: Console) -> None:
    """Prints to the console."""
    if not console.is_terminal:
        console = Console(file=console.file, color_system=None, width=10_000)
    for part in parts:
        console.print(Text(f"\n{escape.terminal(part.title)}", style="italic"))
        table = RichTable(box=None, pad_edge=False, padding=(0, 1))
        for place, name in enumerate(part.columns):
            table.add_column(Text(escape.terminal(name)), justify="right" if place else "left")
        for line in part.lines:
            table.add_row(*(Text(escape.terminal(field)) for field in line))
        console.print(table)
        for sentence in part.notes:
            console.print(Text(escape.terminal(sentence), style="dim"), soft_wrap=not console.is_terminal)


def further_markdown(parts: Sequence[Further]) -> str:
    """GitHub-flavoured Markdown, to go below that of the main table."""
    text = []
    for part in parts:
        rows = [[*part.columns], ["---", *("---:" for _ in part.columns[1:])], *part.lines]
        lines = [
            f"| {' | '.join(row if number == 1 else map(escape.markdown, row))} |" for number, row in enumerate(rows)
        ]
        text += [
            f"## {escape.markdown(part.title)}",
            "\n".join(lines),
            "\n".join(map(escape.markdown_item, part.notes)),
        ]
    return "".join(f"\n{one}\n" for one in text)


def further_latex(parts: Sequence[Further]) -> str:
    """A ``table`` environment for each, with a caption of its title and its notes below."""
    text = []
    for part in parts:
        body = [" & ".join(map(escape.latex, line)) + r" \\" for line in part.lines]
        text += [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape.latex(part.title)}.}}",
            rf"\begin{{tabular}}{{l{'r' * (len(part.columns) - 1)}}}",
            r"\toprule",
            " & ".join(map(escape.latex, part.columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            rf"\footnotesize {escape.latex(' '.join(part.notes))}",
            r"\end{table}",
            "",
        ]
    return "".join(f"\n{line}" for line in text)


def further_csv(parts: Sequence[Further]) -> str:
    """CSV, each table behind an empty line."""
    return "".join(f"\n{escape.csv([part.columns, *part.lines])}" for part in parts)
