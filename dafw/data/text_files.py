"""Texts in files, with what columns beside them say: csv, tsv, jsonl and Parquet."""

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dafw.data.manifest import SPLITS
from dafw.data.strings import Coder, Strings, Words
from dafw.errors import UserError, choose, nearest
from dafw.files import reading
from dafw.names import one_spelling

#: Endings of the files that are read.
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_LONGEST_CELL = 1 << 30


class TextColumns(NamedTuple):
    """Names of the columns of a file; ``None`` where it needs none. Each is the argument ``data.<name>_column``."""

    text: str = "text"
    label: str | None = "label"
    domain: str | None = "domain"
    id: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class TextTable:
    """The texts of a file or of a domain, in their order.

    Args:
        path: the file.
        texts: the n texts.
        labels: the class of each; ``None`` for one without a label.
        domains: the domain of each; no word for a file without this column.
        splits: the split of each; no word for a file without this column.
        ids: the name of each; ``None`` for a file without this column.
        rows: the number of each in the file, from 1; in a csv or jsonl file it is a line.
    """

    path: Path
    texts: Strings
    labels: Words
    domains: Words
    splits: Words
    ids: Strings | None
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, chosen: NDArray[np.int64]) -> "TextTable":
        """Some of the texts."""
        columns = (self.labels[chosen], self.domains[chosen], self.splits[chosen])
        ids = None if self.ids is None else self.ids[chosen]
        return TextTable(self.path, self.texts[chosen], *columns, ids, self.rows[chosen])

    def where(self, index: int) -> str:
        """How an error calls a row."""
        return f"{self.path}, {_unit(self.path)} {self.rows[index]}"


def read_texts(path: Path, columns: TextColumns) -> TextTable:
    """The texts of a file. Labels, domains and names may be numbers; texts may not.

    A csv or tsv file has a header. A jsonl file has an object on each line. Columns that are not asked for are passed
    over. A file without the column of labels, or with empty ones, has no labels.

    Raises:
        UserError: if the file cannot be read, lacks a column, has no rows, has an empty text, or its texts are numbers.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} ends in none of {', '.join(SUFFIXES)}: texts are read from such files")
    words, rows, names = Coder(), array("q"), list[str]()

    def texts() -> Iterator[str]:
        for row, cells in _rows(path, columns):
            where = f"{path}, {_unit(path)} {row}"
            text = cells[columns.text]
            if isinstance(text, int | float):
                raise _no_texts(path, columns.text)
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}: the text is empty: remove the row, or write its text")
            found = {what: _word(cells.get(name)) for what, name in columns._asdict().items() if what != "text"}
            for what in ("domain", "id", "split"):
                if getattr(columns, what) is not None and not found[what]:
                    raise UserError(f"{where}: the column {getattr(columns, what)} (data.{what}_column) is empty")
            if columns.split is not None:
                choose(f"split in {where}", str(found["split"]), SPLITS)
            words.add((found["label"], found["domain"], found["split"]))
            rows.append(row)
            names.extend([found["id"]] if found["id"] else ())
            yield text

    with reading("the file", path):
        found = Strings.of(texts())
    if not len(found):
        raise UserError(f"{path} has no rows")
    if all(map(_is_number, found)):
        raise _no_texts(path, columns.text)
    return TextTable(path, found, *words.columns(3), Strings.of(names) if names else None, np.array(rows, np.int64))


def _unit(path: Path) -> str:
    return "row" if path.suffix.lower() == ".parquet" else "line"


def _no_texts(path: Path, column: str) -> UserError:
    return UserError(
        f"the column {column} of {path} holds numbers and no texts: name the column of the texts (data.text_column)"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _word(value: Any) -> str | None:
    """A label, a domain or a name as it is written; whole numbers without a point."""
    if value is None or value != value:  # a missing number of Parquet is nan
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return one_spelling(str(value)) or None


def _rows(path: Path, columns: TextColumns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The cells of each row by column, with the number of the row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path, columns)
    return _objects(path, columns) if kind == ".jsonl" else _table(path, columns)


def _check(path: Path, columns: TextColumns, names: Sequence[str]) -> None:
    """Checks that the columns are there. Without labels, a name that is nearly that of the labels is a mistake."""
    for what, name in columns._asdict().items():
        if name is None or name in names:
            continue
        if what != "label" or get_close_matches(name, names, n=1, cutoff=0.7):
            raise UserError(f'{path} has no column "{name}" (data.{what}_column): {nearest(name, names)}'.rstrip(": "))


def _table(path: Path, columns: TextColumns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = next(reader, [])
            _check(path, columns, header)
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, and the header has {len(header)}: put "
                        "texts that hold separators into quotes"
                    )
                if cells:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text with columns: {error}") from error
    finally:
        csv.field_size_limit(before)


def _objects(path: Path, columns: TextColumns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise UserError(f"{path}, line {number} is no object with a value for each column")
                _check(path, columns, [*found])
                yield number, found
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as an object in JSON on each line: {error}") from error


def _parquet(path: Path, columns: TextColumns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f'{path} is a Parquet file, which needs pyarrow: pip install "dafw[features]"') from error
    try:
        with parquet.ParquetFile(path) as file:
            _check(path, columns, file.schema_arrow.names)
            asked = [name for name in columns if name in file.schema_arrow.names]
            row = 0
            for batch in file.iter_batches(columns=asked):
                for cells in batch.to_pylist():
                    row += 1
                    yield row, cells
    except arrow.ArrowException as error:
        raise UserError(f"{path} cannot be read as a Parquet file: {error}") from error
