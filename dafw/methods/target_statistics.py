"""Batch statistics of the target: a network is served with them on the target, and keeps its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dafw.nn.norm import DomainBatchNorm

if TYPE_CHECKING:
    from dafw.methods.base import Method

#: The mean and the variance (C,) of each layer.
Statistics = Sequence[tuple[Tensor | None, Tensor | None]]


def copied(layers: Sequence[DomainBatchNorm]) -> Statistics:
    """Copies of the layers' running statistics of the target."""
    pairs = [(layer.running_mean, layer.running_var) for layer in layers]
    return [(None, None) if mean is None or var is None else (mean.clone(), var.clone()) for mean, var in pairs]


@contextmanager
def served_with(layers: Sequence[DomainBatchNorm], statistics: Statistics) -> Iterator[None]:
    """Within the block, the layers hold these statistics."""
    kept = [(layer.running_mean, layer.running_var) for layer in layers]
    for layer, (mean, variance) in zip(layers, statistics, strict=True):
        layer.running_mean, layer.running_var = mean, variance
    try:
        yield
    finally:
        for layer, (mean, variance) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var = mean, variance


@torch.no_grad()
def estimate(method: "Method", layers: Sequence[DomainBatchNorm], statistics: Statistics) -> None:
    """Sets statistics to their averages over the batches of one pass over the target's unlabelled training images.

    Every rank makes the whole pass, so all ranks agree.

    Args:
        method: with a datamodule. Its network in evaluation passes the images.
        layers: all batch normalisations of that network.
        statistics: what is set, in place.
    """
    data: Any = method.data
    kept = [(layer.momentum, layer.num_batches_tracked, layer.follows) for layer in layers]
    with served_with(layers, statistics), method.layout.temporarily(sync=False):
        for layer in layers:
            layer.momentum, layer.follows = None, False
            layer.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=method.device)
            layer.train()
        for name in data.target:
            for batch in data.evaluation_loader(data.domain(name, "train").unlabelled(), shard=False):
                rows = batch.to(method.device)
                method.forward_rows(rows.x, 0, method.eval_network, rows.sizes)
    for layer, (momentum, batches, follows) in zip(layers, kept, strict=True):
        layer.momentum, layer.num_batches_tracked, layer.follows = momentum, batches, follows
        layer.eval()
