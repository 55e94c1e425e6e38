"""KNN: features whose nearest labelled neighbours vote for their class, AdaNPC's training."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod, gather_domains, split_domains
from dafw.nn.neighbours import NeighbourMemory
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveFloat, PositiveInt


class KNN(GeneralizationMethod):
    """Trains the features for a classifier without weights: the vote of the nearest of the latest training samples.

    Loss: weight * mean_i -log p_i(y_i) + head_weight * CE: p (n, K) are the votes for the features (n, d), see
    :func:`~dafw.nn.neighbours.votes`, of a queue of the latest rows of all sources and ranks, as they were after their
    own steps; the cross-entropy is that of the label head. The temperature falls linearly from ``first_temperature`` to
    ``temperature`` over the training. Evaluations predict log p by the queue, at the last temperature.

    Zhang et al., AdaNPC: Exploring Non-Parametric Classifier for Test-Time Adaptation, ICML 2023,
    https://arxiv.org/abs/2304.12566. The defaults are those of the authors' code (its algorithm KNN): Adam with a rate
    of 1e-4, 32 rows of each source, 5000 steps; 1000 rows in the queue, 10 neighbours and 1e-3 for small images. It
    halves the rate where the loss stands still, and starts with a queue of random rows of the first class. Here the
    rate follows ``schedule``, and the queue starts empty: the loss of the first step has no gradient.
    :class:`~dafw.methods.test_time.adanpc.AdaNPC` predicts by all samples of the source, and by those of the stream.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        queue_size: rows of the queue.
        neighbours: number k of voters.
        first_temperature: of the votes at the start of the training.
        temperature: of the votes at its end, and in evaluations.
        weight: of the vote's loss. With 0 the label head predicts; the control has that, and ``head_weight: 1``.
        head_weight: of the label head's loss; with 0 the head keeps its initial weights, as in the authors' code.
        optimizer: see the base.
        lr: see the base.
        base: see :class:`~dafw.methods.generalization.base.GeneralizationMethod`.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "head_weight": 1.0}
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "neighbours": [10, 50, 150]}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        queue_size: PositiveInt = 3500,
        neighbours: PositiveInt = 150,
        first_temperature: PositiveFloat = 1.0,
        temperature: PositiveFloat = 0.1,
        weight: NonNegativeFloat = 1.0,
        head_weight: NonNegativeFloat = 0.0,
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-4,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.neighbours, self.weight, self.head_weight = neighbours, weight, head_weight
        self.first_temperature, self.temperature = first_temperature, temperature
        self.queue = NeighbourMemory(network.num_features, queue_size)
        self._joins: tuple[Tensor, Tensor] | None = None
        if not head_weight:
            network.label_head().requires_grad_(False)

    def losses(self, batch: Batch) -> Losses:
        """The loss of the votes, and that of the label head."""
        joint, terms = self.forward_batch(batch), {}
        if self.head_weight:
            terms["supervised"] = self.head_weight * self.problem.loss(joint, batch.y)
        if self.weight:
            temperature = self.first_temperature + (self.temperature - self.first_temperature) * self.progress
            votes = self.vote(joint, temperature)
            terms["vote"] = self.weight * F.nll_loss(votes.log(), batch.y)
            if not self.repeated_pass:
                domains, labels = gather_domains(*split_domains(joint, batch.y, self.num_domains(batch)))
                self._joins = torch.cat([one.features.detach() for one in domains]), torch.cat(labels)
        return terms

    def vote(self, outputs: Outputs, temperature: float) -> Tensor:
        """What the queue votes for the features of n rows, (n, K)."""
        return self.queue.vote(outputs.features, self.num_classes, neighbours=self.neighbours, temperature=temperature)

    def commit(self, batch: Batch) -> None:
        """As the base; the rows of the step join the queue."""
        super().commit(batch)
        if self._joins is not None:
            self.queue.add(*self._joins)
            self._joins = None

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """See the base; by the vote."""
        return self._voted(super().evaluate(batch, source))

    def forward(self, x: Any) -> Outputs:
        """Images (N, C, H, W) to features and log p."""
        return self._voted(super().forward(x))

    def _voted(self, outputs: Outputs) -> Outputs:
        return replace(outputs, logits=self.vote(outputs, self.temperature).log()) if self.weight else outputs
