"""A table of the classes' shares in images, as ``dafw predict`` writes beside masks."""

import csv
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.files import trouble, user_path


def read_shares(key: str, path: str, ids: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """The shares of the classes in some images, (n, K).

    Args:
        key: what the file is called in messages.
        path: a CSV file with the columns ``sample`` and ``share_<class>`` for each class. Others are passed over.
        ids: the names of the n images.
        class_names: of the K classes.

    Raises:
        UserError: if the file cannot be read, lacks a column or an image, or has shares that do not sum to 1.
    """
    columns = [f"share_{name}" for name in class_names]
    try:
        with user_path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key} {path} cannot be read: {trouble(error) or error}") from error
    if lacking := [column for column in ("sample", *columns) if not rows or rows[0].get(column) is None]:
        raise UserError(f"{key} {path} has no column {lacking[0]}: it needs sample, {', '.join(columns)}")
    found = {row["sample"]: row for row in rows}
    shares = []
    for name in ids:
        if name not in found:
            raise UserError(f"{key} {path} has no row for the sample {name}")
        try:
            values = [float(found[name][column]) for column in columns]
        except (TypeError, ValueError) as error:
            raise UserError(f"{key} {path} has a share of {name} that is no number") from error
        if min(values) < 0 or not math.isclose(sum(values), 1, abs_tol=1e-3):
            raise UserError(f"{key} {path} has shares of {name} that are negative or do not sum to 1: {sum(values):g}")
        shares.append(values)
    return torch.tensor(shares)
