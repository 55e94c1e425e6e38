"""Predictions of a run in place of a domain's labels."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from dafw.data.domain import Domain
from dafw.data.roles import Split
from dafw.errors import UserError, nearest
from dafw.files import reading, user_path


def relabelled(domain: Domain, split: Split, predictions: str, class_names: Sequence[str]) -> Domain:
    """A domain with predicted classes for labels. Its own labels are not looked at.

    Args:
        domain: the samples.
        split: their split.
        predictions: the CSV file that ``dafw predict RUN --split all`` writes.
        class_names: of the data.

    Raises:
        UserError: if the file cannot be read, lacks a sample, or predicts a class that the data does not have.
    """
    path = user_path(predictions)
    with reading("the file", path):
        found = _read(path, path.stat().st_mtime_ns)
    codes = {name: code for code, name in enumerate(class_names)}
    labels = np.empty(len(domain), np.int64)
    for index in range(len(domain)):
        sample = domain.id(index)
        name = found.get((domain.name, f"{split}/{sample}")) or found.get((domain.name, sample))
        if name is None:
            raise UserError(
                f"{path} (data.pseudo_labels) has no prediction for {sample} of {domain.name}: predict all of it with "
                "dafw predict RUN --split all"
            )
        if name not in codes:
            raise UserError(f'{path} (data.pseudo_labels) predicts "{name}": {nearest(name, class_names)}')
        labels[index] = codes[name]
    return replace(domain, labels=labels)


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> Mapping[tuple[str, str], str]:
    """By domain and sample the predicted class."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        columns = [[row[name].removeprefix("'") for row in rows] for name in ("domain", "sample", "prediction")]
    except (KeyError, AttributeError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} (data.pseudo_labels) is no CSV file of predictions with the columns domain, sample and prediction"
        ) from error
    return {(domain, sample): name for domain, sample, name in zip(*columns, strict=True)}
