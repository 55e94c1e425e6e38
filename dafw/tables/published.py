"""Published numbers: a CSV beside the table, each number with where it comes from and how sure we are of it.

Columns: ``method,task,value,std,n,metric,backbone,protocol,source,provenance,note``. Values and standard deviations are
percentages. ``method`` is a row's name (or what the row's ``published`` key says), ``task`` a task of the table,
``average`` or ``worst``. A method without a row gets a line of its own. ``std``, ``n`` and ``note`` may be empty, and
``backbone`` and ``protocol`` may be left out.

``backbone`` is the network's name. ``protocol`` is a YAML mapping that says how the number was made:

- ``reported``: what the number is of, such as the best epoch, or the mean of 3 trials;
- ``selection``: what chose the epoch: ``last`` (nothing did), ``source`` (held-out samples of the sources), ``oracle``
  (labels of the target; the number is marked) or ``none`` (there are no epochs);
- ``images_per_domain``: how many images of a target are tested; ``null``: all;
- ``batch_size``: samples of each domain in a batch;
- ``reset``: when a model that learns at test time starts anew; ``none`` of other models;
- further words of a stream's protocol, and what else is known.

``not known`` stands where a source does not say it. A table compares what is known with its rows, and marks a number
that was made in another way.

``provenance`` is one of:

- ``seen``: read in the source itself;
- ``recalled``: written from memory of the source;
- ``unsure``: the number or its protocol may not be the one meant.
"""

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yaml import YAMLError

from dafw.errors import UserError, choose
from dafw.plain_yaml import load_yaml
from dafw.run.stream_result import Setting
from dafw.tables.fields import read_name

COLUMNS = ("method", "task", "value", "std", "n", "metric", "source", "provenance", "note")
FURTHER = ("backbone", "protocol")
"""Columns that may be left out."""
UNKNOWN = "not known"
SELECTIONS = ("last", "source", "oracle", "none", UNKNOWN)
PROVENANCES = ("seen", "recalled", "unsure")
MARKS = {"seen": "", "recalled": "†", "unsure": "‡", "oracle": "§"}
MEANINGS = {
    "recalled": "written from memory of the source, not looked up",
    "unsure": "unsure: the number or its protocol may differ from ours",
    "oracle": "of the epoch that scores best on labels of the target: an upper bound on what other criteria reach",
}


@dataclass(frozen=True)
class Published:
    """One published number, in percent."""

    method: str
    task: str
    value: float
    std: float | None
    n: int | None
    metric: str
    source: str
    provenance: str
    note: str
    backbone: str = ""
    protocol: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def selection(self) -> str:
        """What chose its epoch, one of :data:`SELECTIONS`."""
        return str(self.protocol.get("selection", UNKNOWN))

    @property
    def mark(self) -> str:
        """What stands behind the number: how sure we are of it, and whether labels of the target chose its epoch."""
        return MARKS[self.provenance] + MARKS.get(self.selection, "")


def read_published(path: Path, tasks: set[str]) -> tuple[Published, ...]:
    """Reads the file and checks every line.

    Args:
        path: the CSV file.
        tasks: the names of the table's tasks, besides which ``average`` and ``worst`` are allowed.

    Raises:
        UserError: naming the line and what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f'there is no file "{path.name}" beside the table for its published numbers, in {path.parent}')
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8: save it in that encoding") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for column in header:
            choose(f"column of {path.name}", column, (*COLUMNS, *FURTHER))
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise UserError(f"{path.name} lacks the column {missing[0]} (it takes {','.join(COLUMNS)})")
        return tuple(_line(f"{path.name}, line {reader.line_num}", line, tasks) for line in reader)
    except csv.Error as error:
        raise UserError(f"{path.name}, line {reader.line_num + 1} is not CSV: {error}") from error


def _line(where: str, line: dict[str, str | None], tasks: set[str]) -> Published:
    if None in line or None in line.values():
        raise UserError(f"{where}: expected {len(set(line) - {None})} fields (quote a field that contains a comma)")
    text = {
        key: read_name(f"{where}: the {key}", value) if value and value.strip() else "" for key, value in line.items()
    }
    for column in ("method", "metric", "source"):
        if not text[column]:
            raise UserError(f'{where}: the column "{column}" is empty')
    task = re.sub(r"\s*(->|,)\s*", r"\1", text["task"])
    choose(f"task in {where}", task, [*sorted(tasks), "average", "worst"])
    choose(f"provenance in {where}", text["provenance"], PROVENANCES)
    value = _number(where, "value", text["value"])
    if not 0 <= value <= 100:
        raise UserError(f"{where}: the value {text['value']} is not a percentage")
    return Published(
        method=text["method"],
        task=task,
        value=value,
        std=_number(where, "std", text["std"]) if text["std"] else None,
        n=_seeds(where, text["n"]) if text["n"] else None,
        metric=text["metric"],
        source=text["source"],
        provenance=text["provenance"],
        note=text["note"],
        backbone=text.get("backbone", ""),
        protocol=_protocol(where, text.get("protocol", "")),
    )


def _protocol(where: str, text: str) -> dict[str, Setting]:
    try:
        found = load_yaml(text) if text else {}
    except (ValueError, YAMLError):
        found = None
    if not isinstance(found, dict) or not all(one is None or isinstance(one, str | int) for one in found.values()):
        raise UserError(f"{where}: the protocol {text} is no mapping of words and numbers, as {{batch_size: 200}}")
    if "selection" in found:
        choose(f"selection in {where}", str(found["selection"]), SELECTIONS)
    return {str(name): value for name, value in found.items()}


def _seeds(where: str, text: str) -> int:
    number = _number(where, "n", text)
    if number < 1 or number != int(number):
        raise UserError(f"{where}: the n {text} is no number of runs")
    return int(number)


def _number(where: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f'{where}: the {column} "{text}" is not a number') from error
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: the {column} {text} is not a finite number of at least 0")
    return value
