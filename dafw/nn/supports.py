"""Support sets: for each class the features that were predicted as it with the least entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.buffers import VariableLengthBuffers


class Supports(VariableLengthBuffers):
    """Features by predicted class, of which each class keeps those of least entropy. Their mean direction scores.

    Iwasawa and Matsuo, Test-Time Classifier Adjustment Module (T3A), NeurIPS 2021, https://arxiv.org/abs/2109.07398
    (recalled). Every rank must be given the rows of all ranks.

    Args:
        num_classes: K.
        per_class: most features that a class keeps, M; ``None``: all, so that the memory grows with the stream.
        drop_worst: with ``per_class`` ``None``, each call drops the feature of largest entropy of each class, as the
            authors' code does, which means to keep all.

    Attributes:
        features: (S, d), in the order of class, then of entropy.
        labels: (S,) int64, the class of each; K for one that has been dropped.
        entropies: (S,).
    """

    variable_buffers = ("features", "labels", "entropies")
    features: Tensor
    labels: Tensor
    entropies: Tensor

    def __init__(self, num_classes: int, per_class: int | None, *, drop_worst: bool = False) -> None:
        super().__init__()
        self.num_classes, self.per_class, self.drop_worst = num_classes, per_class, drop_worst
        self.register_buffer("features", torch.empty(0, 0))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("entropies", torch.empty(0))

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor, entropies: Tensor) -> None:
        """Starts with these features, such as the rows of a linear label head; nothing is dropped.

        Args:
            features: (S, d).
            labels: (S,) int64.
            entropies: (S,).
        """
        self.features, self.labels, self.entropies = features.clone(), labels.clone(), entropies.clone()

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, entropies: Tensor) -> None:
        """Adds rows, then drops what a class has too much of. The host reads nothing.

        Args:
            features: (n, d).
            labels: (n,) int64, their predicted classes.
            entropies: (n,), of their predictions.
        """
        labels = torch.cat([self.labels, labels])
        entropies = torch.cat([self.entropies, entropies.to(self.entropies)])
        order = entropies.argsort(stable=True)
        order = order[labels[order].argsort(stable=True)]
        sorted_labels = labels[order]
        classes = torch.arange(self.num_classes + 1, device=labels.device)
        counts = (labels == classes[:, None]).sum(1)
        rank = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[sorted_labels]
        limit = counts if self.per_class is None else torch.full_like(counts, self.per_class)
        limit = limit - 1 if self.per_class is None and self.drop_worst else limit
        sorted_labels = torch.where(rank < limit[sorted_labels], sorted_labels, self.num_classes)
        last = sorted_labels.argsort(stable=True)
        if self.per_class is not None:
            last = last[: self.per_class * self.num_classes]
        order, self.labels = order[last], sorted_labels[last]
        self.features = torch.cat([self.features, features.to(self.features)])[order]
        self.entropies = entropies[order]

    def centroids(self) -> Tensor:
        """For each class the direction of the sum of its normalised features, (K, d); 0 for a class without any."""
        members = (self.labels == torch.arange(self.num_classes, device=self.labels.device)[:, None]).to(self.features)
        with torch.autocast(self.features.device.type, enabled=False):
            return F.normalize(members @ F.normalize(self.features, dim=1), dim=1)
