"""Parquet files. The package that writes them is not among those that dafw installs."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dafw.errors import UserError
from dafw.files import replacing


def require_parquet(path: Path) -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Args:
        path: the file that needs them.

    Raises:
        UserError: naming the file, if pyarrow is not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            f"{path} is a Parquet file, which needs pyarrow: install it (pip install pyarrow), or give --output "
            "another ending, which means CSV"
        ) from error


def write_parquet(table: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Writes a Parquet file in one step.

    Args:
        table: columns of the same length by name.
        path: the file.

    Raises:
        UserError: if pyarrow is not installed.
    """
    arrow, parquet = require_parquet(path)
    columns = {_text(name): [_text(value) for value in values] for name, values in table.items()}
    with replacing(path) as file:
        parquet.write_table(arrow.table(columns), file)


def _text(value: Any) -> Any:
    """A name of a file may hold bytes that are not UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
