"""Frames of pandas, where it is installed."""

from typing import Any

from dafw.errors import UserError


def import_pandas() -> Any:
    """The package pandas.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("a frame needs the package pandas: install it") from error
    return pandas
