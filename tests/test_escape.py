"""Text in each medium: what is shown is the text, and no character of it is a command."""

import csv
import html
import io
import re

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from dafw import escape
from dafw.errors import sentence

HOSTILE = [
    "<script>alert(1)</script>",
    "a' onmouseover='x",
    "&lt;b&gt;",
    "US$_AU$",
    r"a $\frac{$ b",
    "[red]x[/red]",
    "a[/b]c",
    "[x](javascript:alert(1))",
    "a|b",
    "`rm`",
    "a\nb",
    "a\rb",
    "a\tb",
    r"\input{/etc/passwd}",
    "[2pt]",
    "*x",
    "50% & #1 _x_ ^2 ~",
    '=HYPERLINK("http://x")',
    "+1+cmd|' /C calc'!A0",
    "-1+1",
    "@SUM(1)",
    "'quoted",
    "日本語 \u202eabc",
    "x" * 300,
    "\x1b[31mred",
    "a\x00b",
    "caf\udce9",
    "# x",
    "1. x",
    "> x",
    "a--b",
    "_a",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_one_line_without_commands(text: str) -> None:
    shown = escape.terminal(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system=None, width=400).print(Text(shown))
    assert file.getvalue() == f"{shown}\n"
    assert (shown == text) == text.isprintable()


def test_control_characters_are_spelt_out() -> None:
    assert escape.terminal("a\nb\t\x1b[0m\u202e") == r"a\nb\t\x1b[0m\u202e"
    assert escape.terminal("e\u0301 \N{WOMAN}\u200d\N{MICROSCOPE} ש") == "e\u0301 \N{WOMAN}\u200d\N{MICROSCOPE} ש"
    assert sentence(ValueError("a \n b \x1b[31m")) == r"a b \x1b[31m"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_shows_the_text(text: str) -> None:
    written = escape.html(text)
    assert not set('<>"') & set(written)
    assert escape.terminal(html.unescape(written)) == escape.terminal(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_has_no_bare_markup(text: str) -> None:
    written = escape.markdown(text)
    assert "\n" not in written
    bare = re.sub(r"\\.", "", written)
    assert not set("\\`*_|<[]$&~#") & set(bare)
    item = escape.markdown_item(text).removeprefix("- ")
    assert not re.match(r"[-+>=]|\d+[.)]", item)
    for each in (written, item):
        assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", each) == escape.terminal(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_has_no_command_of_the_text(text: str) -> None:
    written = escape.latex(text)
    assert not re.match(r"\s*[\[*]", written), "after the end of a row it is an option"
    assert "--" not in written
    rest = re.sub(r"\\text\w+\{\}|\$\\to\$|\\[&%$#_{}]|\{[\[\]*]\}|-\{\}-", "", written)
    assert not set("\\{}$&#^_%~") & set(rest)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_figure_draws_the_text(text: str) -> None:
    figure = Figure()
    drawn = figure.text(0.5, 0.5, escape.plot(text))
    said, is_math = drawn._preprocess_math(drawn.get_text())  # type: ignore[attr-defined]
    assert not is_math
    shown = escape.terminal(text)
    said = said.removeprefix("\N{THIN SPACE}")
    assert said == shown or (len(said) == 64 and "…" in said and said[:31] == shown[:31] and said[-31:] == shown[-31:])
    assert not drawn.get_text().startswith("_")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_figure_can_be_drawn() -> None:
    figure = Figure()
    for number, text in enumerate(HOSTILE):
        figure.text(0.1, number / len(HOSTILE), escape.plot(text))
    figure.canvas.draw()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_spreadsheet_takes_no_text_for_a_formula(text: str) -> None:
    ((field, *numbers),) = csv.reader(io.StringIO(escape.csv([[text, 1, -2.5, "-3", "", "a"]]), newline=""))
    assert not field.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert numbers == ["1", "-2.5", "-3", "", "a"]
    if text.isprintable() or text.isascii():
        assert field.removeprefix("'") == text


@pytest.mark.parametrize("number", ["-1", "+80%", "-90%", "-0.000001", "+1e-05", ".5", "-.5", "-3"])
def test_numbers_stay_numbers(number: str) -> None:
    assert escape.csv([[number]]) == f"{number}\n"


def test_fields_with_line_breaks_are_one_record() -> None:
    given = [["a\rb", "c\nd", 'e"f'], ["g", "h,i", "j"]]
    assert list(csv.reader(io.StringIO(escape.csv(given), newline=""))) == given
