"""What is written: Markdown, LaTeX, CSV, HTML, the terminal."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import pytest
import yaml
from commands import call, killed_while_writing
from PIL import Image
from rich.console import Console

from dafw import escape
from dafw.files import UNFINISHED
from dafw.plots import Dot, table_bars
from dafw.tables.details import flat
from dafw.tables.grid import Table
from dafw.tables.pages import write_pages
from dafw.tables.reading import load_table
from dafw.tables.render import render_cells, render_csv, render_latex, render_markdown, render_terminal
from dafw.tables.sheet import Sheet, make_sheet
from dafw.tables.store import Store, load
from dafw.tables.thumbnails import LARGE, SmallPictures, embedded

Make = Callable[..., Table]
Fill = Callable[..., Path]
HISTORY = [
    {"step": step, "validators": {"im": 0.1 * step}, "oracle": {}, "test": {"mnistm": {"accuracy": 0.4 + step / 10}}}
    for step in (1, 2)
]
NASTY = 'A_&%$#{}~^\\ <b>|*`"x"'


@pytest.fixture
def made(make_table: Make, fill: Callable[..., Path], tmp_path: Path) -> tuple[Sheet, Store, Path]:
    """A table with a nasty name, a control that wins, an oracle row, a published number and a missing run."""
    (tmp_path / "p.csv").write_text(
        "method,task,value,std,n,metric,source,provenance,note\n"
        "DANN,mnist->mnistm,70.5,,,accuracy,Paper & Co,recalled,<note>\n",
        encoding="utf-8",
    )
    rows: list[dict[str, Any]] = [
        {"name": NASTY, "model": {"class_path": "SourceOnly"}},
        {"name": "DANN", "model": {"class_path": "DANN"}, "control": True},
        {"name": "target", "model": {"class_path": "SourceOnly"}, "data": {"init_args": {"oracle": True}}},
    ]
    table = make_table(title=f"Digits {NASTY}", rows=rows, published="p.csv", seeds=[0, 1])

    def accuracy(row: str, task: str, seed: int) -> float | None:
        if (row, task, seed) == ("target", "optdigits->mnist", 1):
            return None
        return {"DANN": 0.50, "DANN control": 0.55}.get(row, 0.40) + 0.01 * seed

    root = fill(table, accuracy, history=HISTORY)
    store = load(table, root)
    return make_sheet(store), store, root


def test_markdown(made: tuple[Sheet, Store, Path]) -> None:
    text = render_markdown(made[0])
    assert "| DANN | 50.5 ± 0.7 | 50.5 ± 0.7 | 50.5 ± 0.7 | 50.5 ± 0.7 |" in text
    assert "| &nbsp;&nbsp;control | 55.5 ± 0.7 |" in text
    assert "| &nbsp;&nbsp;minus control | \u22125.0 [\u22125.0, \u22125.0] |" in text
    assert "| &nbsp;&nbsp;published | 70.5† |" in text
    assert "| &nbsp;&nbsp;minus published | \u221220.0† |" in text
    assert "| target (oracle) | 40.5 ± 0.7 | 40.0 (n=1) |" in text
    assert r"\<b>\|\*\`" in text
    assert "- target optdigits->mnist seed 1" in text
    assert "- Target test accuracy in %, mean ± sample std over 2 seeds (0, 1)" in text
    widths = {line.count("|") - line.count(r"\|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {6}


def test_latex_prints_every_character_as_it_is(made: tuple[Sheet, Store, Path]) -> None:
    assert escape.latex("a_b & 5% -> {x}") == r"a\_b \& 5\% $\to$ \{x\}"
    assert escape.latex("\\") == r"\textbackslash{}"
    text = render_latex(made[0])
    assert r"A\_\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}b\textgreater{}" in text
    assert r"\quad minus control & $-$5.0 {\scriptsize {[}$-$5.0, $-$5.0{]}}" in text
    assert r"\quad published & 70.5$^\dagger$ & -- & -- & -- \\" in text
    assert r"40.0 {\scriptsize (n=1)}" in text
    assert r" & mnist$\to$mnistm & optdigits$\to$mnist & average & worst \\" in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert text.count(command) == 1
    bare = re.sub(r"\\.", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.isascii()


def test_csv_is_for_machines(made: tuple[Sheet, Store, Path]) -> None:
    sheet, store, _ = made
    lines = list(csv.DictReader(io.StringIO(render_csv(sheet))))
    (gain,) = [one for one in lines if one["kind"] == "minus control" and one["column"] == "mnist->mnistm"]
    assert (gain["criterion"], gain["row"], float(gain["mean"]), float(gain["std"]), gain["n"]) == (
        "last",
        "DANN",
        -5,
        0,
        "2",
    )
    (published,) = [one for one in lines if one["kind"] == "published"]
    assert (published["mean"], published["std"], published["mark"]) == ("70.5", "", "†")
    assert published["note"] == "Paper & Co. <note>"
    cells = list(csv.DictReader(io.StringIO(render_cells(store))))
    assert {one["criterion"] for one in cells} == {"last", "im"}
    assert len(cells) == 15 + 8  # the histories hold no test of mnist, so one of the two tasks has no number for im
    first = cells[0]
    assert (first["row"], first["task"], first["seed"], first["domain"]) == (NASTY, "mnist->mnistm", "0", "mnistm")
    assert float(first["percent"]) == pytest.approx(40)
    assert (first["steps"], first["seconds"]) == ("1000", "61.2")
    assert first["directory"].startswith("SourceOnly-mnist-mnistm-s0-")


class Page(HTMLParser):
    """Checks that tags nest, and collects text, links and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_stands_alone_and_links_its_runs(made: tuple[Sheet, Store, Path]) -> None:
    sheet, store, root = made
    directory = store.directories["DANN", "mnist->mnistm", 0]
    (directory / "log.txt").write_text("log", encoding="utf-8")
    (directory / "plots").mkdir()
    (directory / "plots" / "embedding.png").touch()
    path = write_pages(sheet, store, root)
    assert path == root / "tables" / "digits" / "index.html"
    names = {one.name for one in path.parent.iterdir()}
    figures = {"table.png", "table-dark.png", "training.png", "training-dark.png"}
    assert names == {"table.md", "table.tex", "table.csv", "cells.csv", "index.html", *figures}
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    text = " ".join(page.text)
    assert f"Digits {NASTY}" in text
    assert "\u22125.0 [\u22125.0, \u22125.0]" in re.sub(r"\s+", " ", text)
    assert "target optdigits->mnist seed 1" in text
    assert not [tag for tag, _ in page.attributes if tag in ("link", "b>")]
    assert not [given for tag, given in page.attributes if tag == "script" and "src" in given]
    pictures = [given["src"] or "" for tag, given in page.attributes if tag == "img"]
    assert len(pictures) == 2
    assert all(one.startswith("data:image/png;base64,iVBOR") for one in pictures)
    links = [given["href"] or "" for tag, given in page.attributes if tag == "a"]
    assert f"../../{directory.name}/log.txt" in links
    assert f"../../{directory.name}/plots/embedding.png" in links
    assert all((path.parent / link).is_file() for link in links)
    losing = [given for tag, given in page.attributes if tag == "td" and "down" in (given.get("class") or "")]
    assert losing


def test_a_picture_is_drawn_anew_if_it_would_change(
    make_table: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def bars(dots: Any, metric: str, theme: Literal["light", "dark"]) -> Any:
        drawn.append(theme)
        return table_bars([Dot(*one) for one in dots], metric=metric, theme=theme)

    monkeypatch.setattr("dafw.tables.pages._bars", bars)
    table = make_table(seeds=[0])

    def show(accuracy: float) -> list[str]:
        root = fill(table, lambda row, task, seed: accuracy)
        write_pages(make_sheet(load(table, root)), load(table, root), root)
        found, drawn[:] = list(drawn), []
        return found

    assert show(0.5) == ["light", "dark"]
    assert show(0.5) == []
    assert show(0.6) == ["light", "dark"]
    folder = fill(table, lambda row, task, seed: 0.6) / "tables" / "digits"
    (folder / "table-dark.png").write_bytes((folder / "table.png").read_bytes()[:-2000])
    (folder / "table.png").write_bytes(b"nothing")
    assert show(0.6) == ["light", "dark"]


def test_a_page_without_runs_has_no_pictures(make_table: Make, tmp_path: Path) -> None:
    store = load(make_table(), tmp_path)
    text = write_pages(make_sheet(store), store, tmp_path).read_text(encoding="utf-8")
    assert "<img" not in text
    assert "No number (18)" in text
    assert text.count("not started") == 18


def terminal(sheet: Sheet, **options: Any) -> str:
    file = io.StringIO()
    render_terminal(sheet, Console(file=file, color_system=None, **options))
    return file.getvalue()


def test_a_terminal_too_narrow_gets_the_columns_in_blocks(made: tuple[Sheet, Store, Path]) -> None:
    sheet = made[0]
    wide = terminal(sheet, force_terminal=True, width=200)
    narrow = terminal(sheet, force_terminal=True, width=70)
    piped = terminal(sheet, width=20)
    for text in (wide, narrow, piped):
        for value in ("50.5 ± 0.7", "\u22125.0 [\u22125.0, \u22125.0]", "40.0 (n=1)", "70.5†", "target (oracle)"):
            assert value in text
    assert len([line for line in wide.splitlines() if line.strip().startswith("DANN")]) == 1
    assert len([line for line in narrow.splitlines() if line.strip().startswith("DANN")]) > 1
    assert all(len(line) <= 70 for line in narrow.splitlines() if not line.startswith("no number"))
    assert "no number: target optdigits->mnist seed 1" in piped


def test_a_picture_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, made: tuple[Sheet, Store, Path]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no font")

    monkeypatch.setattr("dafw.plots.histories", fail)
    page = write_pages(*made)
    assert capsys.readouterr().err == "dafw: warning: training.png could not be drawn: no font\n"
    assert "At a glance" in page.read_text()
    assert (page.parent / "table.png").exists()


def test_a_kill_leaves_every_file_of_a_table_whole(made: tuple[Sheet, Store, Path]) -> None:
    """Each is the old one or the new one; the next command writes them all, and removes what was left long ago."""
    sheet, store, root = made
    folder = write_pages(sheet, store, root).parent
    new = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = ("table.md", "table.tex", "table.csv", "cells.csv", "table.png", "training-dark.png", "index.html")
    for name in names:
        for path in folder.iterdir():
            path.write_bytes(b"old")
        killed_while_writing(name, lambda: write_pages(sheet, store, root))
        for path in folder.iterdir():
            if path.suffix == UNFINISHED:
                os.utime(path, (0, 0))
            else:
                assert path.read_bytes() in (b"old", new[path.name])
        assert (folder / name).read_bytes() == b"old"
    write_pages(sheet, store, root)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == new


def test_the_page_is_bounded_and_says_what_it_leaves_out(
    make_table: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are scaled; then those of later seeds and of less importance go; then points and letters of logs."""
    table = make_table(tasks=["mnist->mnistm"], seeds=[0, 1])
    root = fill(table, lambda *_: 0.5, history=HISTORY)
    store = load(table, root)
    sheet = make_sheet(store)
    noise = Image.effect_noise((600, 300), 80)
    for directory in store.directories.values():
        (directory / "plots").mkdir()
        for name in ("confusion.png", "embedding.png", "curves.png"):
            noise.save(directory / "plots" / name)
        (directory / "log.txt").write_text("a line of the log\n" * 200, encoding="utf-8")

    def shown() -> tuple[dict[str, list[str]], str, int]:
        path = write_pages(sheet, store, root)
        text = path.read_text(encoding="utf-8")
        (pictures,) = re.findall(r'id="pictures">(.*?)</script>', text)
        found = {key: list(names) for key, names in json.loads(pictures).items()}
        kept = [name for names in found.values() for name in names]
        assert len(list((path.parent / "thumbnails").iterdir())) - len(kept) in (0, 1), "the others are removed"
        return found, " ".join(re.findall(r"The page stays below.*?(?=</p>)", text)), path.stat().st_size

    pictures, said, size = shown()
    assert pictures == {f"{row},0,{seed}": ["embedding", "confusion"] for seed in (0, 1) for row in (0, 1, 2)}
    assert said == ""
    monkeypatch.setattr("dafw.tables.html.MOST_BYTES", size - 150_000)
    pictures, said, smaller = shown()
    assert smaller < size - 150_000
    assert list(pictures)[:3] == ["0,0,0", "1,0,0", "2,0,0"]
    assert all("embedding" in names for key, names in pictures.items() if key.endswith(",0"))
    left_out = 12 - sum(map(len, pictures.values()))
    assert f"{left_out} pictures of runs are left out; they are in plots/ of each run directory." in said
    monkeypatch.setattr("dafw.tables.html.MOST_DETAILS", 9_000)
    _, said, _ = shown()
    assert "Curves have at most 24 points, and logs at most 600 letters." in said


def test_a_page_of_runs_that_are_gone_is_not_replaced(
    grid_file: Callable[..., Path], fill: Fill, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(seeds=[0])
    table = load_table(grid)
    root = fill(table, lambda *_: 0.5)
    page = write_pages(make_sheet(load(table, root)), load(table, root), root)
    before = page.read_bytes()
    for directory in root.glob("*-*"):
        shutil.rmtree(directory)
    assert call(capsys, "table", "show", grid, "--root", root) == (
        2,
        "",
        f"dafw: error: the runs behind {page} are gone, so it stays as it is: remove it, or make them with dafw table "
        "run\n",
    )
    assert page.read_bytes() == before
    shutil.rmtree(page.parent)
    assert call(capsys, "table", "show", grid, "--root", root).code == 0
    assert "No run of this table is there yet: dafw table run makes them." in page.read_text(encoding="utf-8")


def test_the_configuration_of_a_run_is_read_without_building_it() -> None:
    """Aliases, and lists in lists, stay small; a text that is not YAML is an error and no crash."""
    text = (
        "a: &x [1, 2]\nb: *x\nmodel: {class_path: X, init_args: {of: {}, parts: [{k: 1}, {k: 2}], pair: [[1, 2], 3]}}"
    )
    found = flat(text)
    assert found["a"] == "1, 2"
    assert found["b"] == "*x"
    assert found["model.class_path"] == "X"
    assert (found["model.parts.0.k"], found["model.parts.1.k"]) == ("1", "2")
    assert flat("[" * 900 + "1" + "]" * 900)
    for broken in ("a: [", "a: b: c", "\x00"):
        with pytest.raises(yaml.YAMLError):
            flat(broken)


def test_a_large_figure_is_scaled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((800, 600), 80).save(buffer, format="png")
    assert len(buffer.getvalue()) > LARGE
    first = embedded(buffer.getvalue(), SmallPictures(tmp_path))
    assert first.startswith("data:image/webp")
    assert embedded(bytes(LARGE + 1), SmallPictures(tmp_path)).startswith("data:image/png"), "one that PIL cannot read"
    monkeypatch.setattr("dafw.tables.thumbnails._webp", Mock(side_effect=AssertionError))
    again = SmallPictures(tmp_path)
    assert embedded(buffer.getvalue(), again) == first
    again.tidy()
    assert embedded(buffer.getvalue(), SmallPictures(tmp_path)) == first
    SmallPictures(tmp_path).tidy()
    assert not list((tmp_path / "thumbnails").iterdir())
