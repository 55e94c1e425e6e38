"""A memory of labelled features, and the vote of the nearest of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.precision import full_precision


def votes(
    features: Tensor,
    memory: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    neighbours: int,
    temperature: float,
    radius: float | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """The share of each class among a row's neighbours, weighted by softmax(cosine / temperature) over these alone.

    Zhang et al., AdaNPC, ICML 2023, https://arxiv.org/abs/2304.12566. As in the authors' code each share is raised by
    1e-5 and cut at 1, so a row's shares sum to a little more than 1.

    Args:
        features: (n, d), of any length.
        memory: (m, d), of length 1.
        labels: (m,) int64.
        num_classes: K.
        neighbours: k, the number of nearest memories that vote.
        temperature: T.
        radius: least cosine of a voter; then all memories within it vote, if every row has one there. It is for
            training: whether it applies depends on the whole batch.
        present: (m,) bool, which memories count; ``None``: all. Without any, all shares are equal.

    Returns:
        (n, K).
    """
    units = F.normalize(full_precision(features), dim=1)
    with torch.autocast(features.device.type, enabled=False):
        cosines = units @ memory.to(units).T
    if present is not None:
        cosines = cosines.masked_fill(~present, -2.0)  # below every cosine
    nearest = cosines.detach().topk(min(neighbours, len(memory)), dim=1).values[:, -1:]
    counted = cosines >= nearest
    if radius is not None:
        counted = torch.where((cosines.amax(1) > radius).all(), cosines >= radius, counted)
    if present is not None:
        counted = counted & present
    weights = ((cosines - cosines.detach().amax(1, keepdim=True)) / temperature).exp() * counted
    weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    members = (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(units)
    with torch.autocast(features.device.type, enabled=False):
        return (weights @ members + 1e-5).clamp_max(1.0)


class NeighbourMemory(VariableLengthBuffers):
    """Labelled features of length 1 that vote. Every rank must be given the rows of all ranks.

    Args:
        width: d.
        capacity: number of features of a queue that starts empty, whose oldest ones leave first; ``None``: the memory
            grows.

    Attributes:
        features: (m, d).
        labels: (m,) int64.
        present: (m,) bool, which of them count.
        position: where a queue's next feature goes.
    """

    variable_buffers = ("features", "labels", "present")
    features: Tensor
    labels: Tensor
    present: Tensor
    position: Tensor

    def __init__(self, width: int, capacity: int | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("features", torch.zeros(capacity or 0, width))
        self.register_buffer("labels", torch.zeros(capacity or 0, dtype=torch.int64))
        self.register_buffer("present", torch.zeros(capacity or 0, dtype=torch.bool))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, kept: Tensor | None = None) -> None:
        """Takes in rows. The host reads nothing, so a row that is not kept takes up room without counting.

        Args:
            features: (n, d), of any length.
            labels: (n,) int64.
            kept: (n,) bool, the rows that count; ``None``: all.
        """
        units = F.normalize(full_precision(features), dim=1).to(self.features)
        kept = torch.ones_like(labels, dtype=torch.bool) if kept is None else kept
        if self.capacity is None:
            self.features = torch.cat([self.features, units])
            self.labels, self.present = torch.cat([self.labels, labels]), torch.cat([self.present, kept])
            return
        rows = units[-self.capacity :], labels[-self.capacity :], kept[-self.capacity :]
        skipped = len(units) - len(rows[0])
        places = torch.arange(skipped, len(units), device=labels.device)
        places = (places + self.position) % self.capacity
        for buffer, new in zip((self.features, self.labels, self.present), rows, strict=True):
            buffer.index_copy_(0, places, new)
        self.position.add_(len(units)).remainder_(self.capacity)

    def vote(self, features: Tensor, num_classes: int, **options: float | None) -> Tensor:
        """See :func:`votes`; (n, d) -> (n, num_classes)."""
        how: dict[str, Any] = dict(options)
        return votes(features, self.features, self.labels, num_classes, present=self.present, **how)
