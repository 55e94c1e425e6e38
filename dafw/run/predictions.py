"""Writes the predictions of ``dafw predict`` into a CSV file."""

import csv
import io
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dafw.files import write_atomically
from datamodules.base import DomainDataModule

Predictions = list[list[dict[str, Any]]]
"""By target, the columns of each batch."""


def gather_predictions(predicted: list[Any], data: DomainDataModule) -> Predictions:
    """Collects the batches of each target from all ranks.

    Args:
        predicted: the value of ``Trainer.predict``: the batches of one loader, or a list of batches for each loader.
        data: the datamodule with the targets.
    """
    own: Predictions = [predicted] if len(data.target) == 1 else predicted
    if not torch.distributed.is_initialized():
        return own
    shares: list[Predictions] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, own)
    return [[batch for share in shares for batch in share[position]] for position in range(len(data.target))]


def write_predictions(predicted: Predictions, data: DomainDataModule, path: Path) -> None:
    """Writes a line for each test sample of the targets: domain, sample, prediction, a probability for each class.

    If the method rejects samples, a prediction may be ``unknown``, and the column ``unknown`` holds the margin.

    Args:
        predicted: the batches of each target.
        data: the datamodule with the targets.
        path: the file. Its folder is made.
    """
    names = (*data.known_names, "unknown")
    margins = ["unknown"] if any("unknown" in batch for batches in predicted for batch in batches) else []
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["domain", "sample", "prediction", *margins, *(f"p_{name}" for name in data.known_names)])
    for name, batches in zip(data.target, predicted, strict=True):
        domain = data.domain(name, "test")
        keys = ["index", "prediction", *margins, "probabilities"]
        columns = [chain.from_iterable([batch[key].tolist() for batch in batches]) for key in keys]
        for index, prediction, *margin, shares in sorted(zip(*columns, strict=True)):
            numbers = [f"{number:.6f}" for number in (*margin, *shares)]
            writer.writerow([name, domain.id(index), names[prediction], *numbers])
    write_atomically(path, text.getvalue())
