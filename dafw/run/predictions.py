"""Collects the predictions of ``dafw predict``; the problem writes them."""

from itertools import chain
from typing import Any

import torch

from dafw.problems import Predicted
from datamodules.base import DomainDataModule


def gather_predictions(predicted: list[Any], data: DomainDataModule) -> list[Predicted]:
    """Collects the predictions for each target from all ranks, in the order of its samples.

    Args:
        predicted: the value of ``Trainer.predict``: the batches of one loader, or a list of batches for each loader.
        data: the datamodule with the targets.
    """
    own: list[list[dict[str, Any]]] = [predicted] if len(data.target) == 1 else predicted
    shares = [own]
    if torch.distributed.is_initialized():
        shares = [own] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, own)
    found = []
    for position, name in enumerate(data.target):
        batches = [batch for share in shares for batch in share[position]]
        columns = {key: list(chain.from_iterable(_rows(batch[key]) for batch in batches)) for key in batches[0]}
        order = sorted(range(len(columns["index"])), key=columns["index"].__getitem__)
        domain = data.domain(name, "test")
        ids = [domain.id(columns["index"][row]) for row in order]
        values = {key: [column[row] for row in order] for key, column in columns.items() if key != "index"}
        found.append(Predicted(name, ids, values))
    return found


def _rows(column: Any) -> list[Any]:
    """One value for each sample: a number or a list of numbers of a vector; a larger tensor as it is."""
    if isinstance(column, torch.Tensor):
        return column.tolist() if column.ndim <= 2 else list(column.cpu())
    return list(column)
