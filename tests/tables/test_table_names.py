"""Rows and domains whose names are markup, formulas or numbers."""

import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import call, refused
from rich.console import Console

from dafw import escape
from dafw.errors import UserError
from dafw.tables.grid import Table
from dafw.tables.html import render_html
from dafw.tables.overlay import parse_settings
from dafw.tables.pages import write_pages
from dafw.tables.progress import Live
from dafw.tables.reading import load_table
from dafw.tables.render import render_cells, render_csv, render_latex, render_markdown, render_terminal
from dafw.tables.sheet import make_sheet
from dafw.tables.status import describe
from dafw.tables.store import load

Make = Callable[..., Table]
Fill = Callable[..., Path]
ROWS = ["[red]x[/red]", "a[/b]c", "[2pt]", "*x", "=1+1", "a|b", "<b>&", "$\\frac{$", "日本語 \u202eabc", "- x", "1. x"]
DOMAINS = ["[bold]", "a[/b]", "a\rb\nc", "\x1b[31mred", "$_{$"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_table_with_odd_names_is_written_in_every_format(make_table: Make, fill: Fill) -> None:
    rows = [
        {"name": name, "model": {"class_path": "SourceOnly", "init_args": {"lr": i}}} for i, name in enumerate(ROWS)
    ]
    history = [{"step": 1, "validators": {}, "oracle": {}, "test": {name: {"accuracy": 0.5} for name in DOMAINS}}]
    table = make_table(rows=rows, tasks=[f"mnist->{name}" for name in DOMAINS], seeds=[0])
    root = fill(table, lambda row, task, seed: None if row == "- x" else 0.5, history=history)
    store = load(table, root)
    sheet = make_sheet(store)
    folder = write_pages(sheet, store, root).parent
    file = io.StringIO()
    render_terminal(sheet, Console(file=file))
    for name in (*ROWS, *DOMAINS):
        assert escape.terminal(name) in file.getvalue()
    for shown in (file.getvalue(), describe(store)):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", shown)
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    grid = [line for line in lines if line.startswith("|")]
    assert len(grid) == 2 + len(ROWS)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in grid} == {len(DOMAINS) + 5}
    assert r"- \- x mnist->\[bold\] seed 0" in lines
    latex = (folder / "table.tex").read_text(encoding="utf-8")
    assert not re.search(r"(\\\\|rule|\\addlinespace)\s*\n\s*[\[*]", latex)
    for name in ("table.csv", "cells.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as opened:
            fields = list(csv.reader(opened))
        assert len({len(line) for line in fields}) == 1
        assert not [field for line in fields for field in line if field[:1] in ("=", "@")]
        assert {line[0 if name == "cells.csv" else 1].removeprefix("'") for line in fields[1:]} >= set(ROWS) - {"- x"}


def test_the_live_display_shows_markup_as_it_is() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100)
    live = Live(console)
    live.begin(2, 0)
    live.started("a[/b]c \x07[red]x[/red]")
    live.failed("a[/b]c", "[bold]broke[/x]", "log.txt", False)
    console.print(live.progress)
    live.close()
    assert r"a[/b]c \x07[red]x[/red]" in file.getvalue()
    assert "a[/b]c: [bold]broke[/x]; no number" in file.getvalue()


TEXT = """
tasks: {pairs: [100, 010, no]}
seeds: [0]
title: 2020-01-01
base: {data: {class_path: Digits, init_args: {label_sets: {common: [010, no], target_private: 1}}}}
rows:
  - {name: 010, model: {class_path: SourceOnly}}
  - {name: null, model: {class_path: SourceOnly}, from: 010}
  - {name: 1e3, model: {class_path: SourceOnly}, published: 007, from: null}
"""


def test_names_in_a_table_file_are_text(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TEXT)
    table = load_table(tmp_path / "t.yaml")
    assert table.tasks[:3] == ("100->010", "100->no", "010->100")
    assert table.title == "2020-01-01"
    rows = [(row.name, row.start, row.published) for row in table.rows]
    assert rows == [("010", None, "010"), ("null", "010", "null"), ("1e3", None, "007")]
    arguments = table.cells()[0].config["data"]["init_args"]
    assert (arguments["source"], arguments["target"]) == (["100"], ["010"])
    assert arguments["label_sets"] == {"common": ["010", "no"], "target_private": 1}
    assert parse_settings(["data.label_sets.common=[010,no]"]) == {
        "data": {"init_args": {"label_sets": {"common": ["010", "no"]}}}
    }


def test_line_breaks_in_a_table_s_own_names_are_spaces(make_table: Make) -> None:
    table = make_table(title="a\n b", rows=[{"name": "x\ty", "model": {"class_path": "SourceOnly"}}])
    assert (table.title, table.rows[0].name) == ("a b", "x y")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"title": "a\x1bb"}, r"title in digits.yaml must be a word or more, without control characters, not 'a\x1bb'"),
        ({"rows": [{"name": " ", "model": {"class_path": "SourceOnly"}}]}, "must be a word or more"),
        ({"rows": [{"name": "a", "model": {"class_path": "SourceOnly"}, "control": 10}]}, "another row, in quotes"),
        ({"note": "a\x00b"}, "note in digits.yaml must be"),
        ({"name": "漢" * 80}, "use up to 120 letters"),
        (
            {"tasks": {"pairs": ["a,b", "c"]}},
            'pairs in digits.yaml names the domain "a,b": ","',
        ),
    ],
)
def test_names_that_no_table_may_have(make_table: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        make_table(**changes)
    assert said in str(raised.value)


def test_what_a_table_dumps_is_read_back(make_table: Make) -> None:
    table = make_table(tasks=["1e3->010"], rows=[{"name": "no", "model": {"class_path": "SourceOnly"}}])
    config = table.cells()[0].config
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert config["data"]["init_args"]["source"] == ["1e3"]


COMMAS = [
    {"name": "mSDA", "model": {"class_path": "SourceOnly"}},
    {"name": "mSDA, NN", "model": {"class_path": "SourceOnly", "init_args": {"lr": 0.2}}, "from": "mSDA"},
    {"name": "mSDA, NN, long", "model": {"class_path": "SourceOnly", "init_args": {"lr": 0.3}}, "from": "mSDA, NN"},
    {"name": "NN", "model": {"class_path": "SourceOnly", "init_args": {"lr": 0.4}}, "from": "mSDA, NN"},
]


def test_a_name_with_a_comma_is_no_list_of_names(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=COMMAS, tasks=["mnist->mnistm"], seeds=[0])
    root = fill(table, lambda row, task, seed: 0.5)
    store = load(table, root)
    sheet = make_sheet(store)
    said = '"mSDA, NN, long", NN start from the models of "mSDA, NN", of the same task and seed.'
    assert said in sheet.caption
    assert '"mSDA, NN" starts from the models of mSDA, of the same task and seed.' in sheet.caption
    names = [row["name"] for row in COMMAS]
    assert [line["row"] for line in csv.DictReader(io.StringIO(render_cells(store)))] == names
    assert [line["row"] for line in csv.DictReader(io.StringIO(render_csv(sheet)))] == names
    assert said in render_markdown(sheet)
    assert said.replace('"', "\\textquotedbl{}") in render_latex(sheet)
    assert said in html.unescape(render_html(sheet, store, root, {}))
    part = table.only(["mSDA, NN, long", "mSDA"], [], [])
    assert part.narrowed == 'rows "mSDA, NN, long", mSDA, with what they start from: "mSDA, NN"'
    assert [row.name for row in part.rows] == names[:3]


def test_rows_with_commas_are_chosen_on_the_command_line(
    grid_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = grid_file(rows=COMMAS, tasks=["mnist->mnistm"], seeds=[0])
    for rows in (("--rows", "mSDA, NN", "NN"), ("--rows", "mSDA, NN", "--rows", "NN")):
        code, out, _ = call(capsys, "table", "status", file, *rows)
        assert code == 0
        assert "3 missing" in out
        assert "mSDA, NN, long" not in out
    assert refused(capsys, "table", "status", file, "--rows", "mSDA,", "NN") == (
        'unknown row "mSDA,": did you mean "mSDA"? (choices: NN, mSDA, "mSDA, NN", "mSDA, NN, long")'
    )


def test_a_task_of_many_targets_is_shown_in_short(make_table: Make, fill: Fill) -> None:
    seven = [f"d{i}" for i in range(7)]
    rows = [
        {"name": name, "model": {"class_path": "SourceOnly", "init_args": {"lr": i}}} for i, name in enumerate("ab")
    ]
    task, six = f"m->{','.join(seven)}", "m->e0,e1,e2,e3,e4,e5"
    table = make_table(rows=rows, tasks=[task, six], seeds=[0])
    history = [
        {
            "step": 1,
            "validators": {},
            "oracle": {},
            "test": {name: {"accuracy": 0.5} for name in [*seven, *(f"e{i}" for i in range(6))]},
        }
    ]
    store = load(table, fill(table, lambda row, task, seed: None if row == "b" else 0.5, history=history))
    sheet, file = make_sheet(store), io.StringIO()
    render_terminal(sheet, Console(file=file))
    for shown in (file.getvalue(), render_markdown(sheet), render_latex(sheet), describe(store)):
        assert task not in shown
        assert "d0 and 6 more" in shown
        assert six in shown.replace("$\\to$", "->")
    page = render_html(sheet, store, Path("pages"), {})
    assert "<th>m \u2192 d0 and 6 more</th>" in page
    assert task in render_csv(sheet)  # for programs


def test_two_tasks_that_would_read_the_same_are_shown_whole(make_table: Make) -> None:
    tasks = [f"m->{','.join(f'd{i}' for i in range(6))},{last}" for last in "xy"]
    table = make_table(tasks=tasks, seeds=[0])
    assert all(task in render_markdown(make_sheet(load(table, Path("nothing")))) for task in tasks)
