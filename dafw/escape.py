"""Names and sentences in the form that each medium needs: what is shown is the text, and no character is a command.

The name of a domain, a class, a sample or a row is text. It may hold anything that a folder's name or a YAML file may
hold: line breaks, control characters, markup, mathematics, formulas.
"""

import csv as _csv
import html as _html
import re
from collections.abc import Iterable

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks, and the bytes of a file's name that are not UTF-8."""
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_SEPARATES = re.compile("[,;:]")
"""What separates the names of a sentence."""
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of all that follows them, numbers too."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s?%?", re.IGNORECASE)
_LONGEST = 64
"""Letters of the longest name in a figure. Axes would have no room beside a longer one."""


def _spelt(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def terminal(text: object) -> str:
    r"""One line for a terminal or a log. Control characters are spelt out: a line break is ``\n``."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():  # as nearly all of it is, so that large pages are quick
        return plain
    return _TURNS.sub(_spelt, _HIDDEN.sub(_spelt, plain))


def named(*names: str) -> str:
    """Names in a sentence, with commas between them. A name that could be taken for several stands in quotes.

    >>> print(named("source only", "source only, strong", "AdaBN"))
    source only, "source only, strong", AdaBN
    """
    return ", ".join(f'"{name}"' if _SEPARATES.search(name) else name for name in names)


def html(text: object) -> str:
    """Text of an HTML page, or the value of an attribute in double quotes."""
    return _html.escape(_HIDDEN.sub(_spelt, str(text)))


def markdown(text: object) -> str:
    r"""A part of a line of GitHub-flavoured Markdown, or of a table's cell.

    >>> print(markdown("a_b | $1 & *"))
    a\_b \| \$1 \& \*
    """
    return re.sub(r"([\\`*_|<\[\]$&~#])", r"\\\1", terminal(text))


def markdown_item(text: object) -> str:
    """An item of a list in GitHub-flavoured Markdown. The text begins no list, quotation or line of its own in it."""
    plain = re.sub(r"^(\s*)([-+>=])", r"\1\\\2", markdown(text))
    return "- " + re.sub(r"^(\s*\d+)([.)])", r"\1\\\2", plain)


_TEX = {
    "\\": r"\textbackslash{}",
    "->": r"$\to$",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "\u2013": "--",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"\textsuperscript{\S}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "--": "-{}-",
    "[": "{[}",  # after the end of a row it would begin a length
    "]": "{]}",
    "*": "{*}",  # after the end of a row it would forbid a page break
}
_TEX_KEYS = re.compile("|".join(map(re.escape, _TEX)))


def latex(text: object) -> str:
    r"""Text for LaTeX, also at the beginning of a table's row. ``->`` becomes an arrow.

    >>> print(latex("a_b & [5%] -> {x}"))
    a\_b \& {[}5\%{]} $\to$ \{x\}
    """
    return _TEX_KEYS.sub(lambda match: _TEX[match[0]], terminal(text))


def plot(text: object, longest: int | None = _LONGEST) -> str:
    """Text for matplotlib, which is drawn as it is written. The middle of a longer text than ``longest`` is left out.

    Without this, matplotlib reads text between two dollar signs as mathematics, and leaves names that begin with an
    underscore out of legends.
    """
    plain = terminal(text)
    if longest is not None and len(plain) > longest:
        plain = f"{plain[: longest // 2]}\N{HORIZONTAL ELLIPSIS}{plain[1 - longest // 2 :]}"
    plain = plain.replace("$", r"\$")
    return f"\N{THIN SPACE}{plain}" if plain.startswith("_") else plain


def csv_field(value: object) -> object:
    """A field of a CSV file. A spreadsheet takes no text for a formula, and numbers stay numbers.

    A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return gets an apostrophe before it, unless
    it is a number or a percentage. So does a text that begins with an apostrophe. Without its first apostrophe a field
    is therefore the text again.

    >>> csv_field("=1+1"), csv_field("-1"), csv_field("+80%"), csv_field("a=b")
    ("'=1+1", '-1', '+80%', 'a=b')
    """
    if not isinstance(value, str):
        return value
    value = _NOT_UTF8.sub(_spelt, value)
    if not value.startswith(("=", "+", "-", "@", "\t", "\r", "'")):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"


class _Lines(list[str]):
    """A file for a CSV writer, whose lines end with CR and LF: otherwise it would not quote a CR inside of a field."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n"))


def csv(rows: Iterable[Iterable[object]]) -> str:
    """A CSV file with these rows, see :func:`csv_field`. Its lines end with LF."""
    lines = _Lines()
    _csv.writer(lines, lineterminator="\r\n").writerows([csv_field(value) for value in row] for row in rows)
    return "".join(f"{line}\n" for line in lines)
