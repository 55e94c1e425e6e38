"""SHOT: source hypothesis transfer."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.entropy import information_maximisation
from dafw.methods.base import Losses
from dafw.methods.source_free.base import SourceFreeMethod
from dafw.methods.targets import target_outputs
from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt


class SHOT(VariableLengthBuffers, SourceFreeMethod):
    """Keeps the source model's label head and trains target features that it classifies confidently and diversely.

    Loss: weight * (mean_i H(p_i) - H(mean_i p_i)) + pseudo_weight * CE(logits, pseudo-labels), over the target's rows:
    features (n, d), logits (n, K). The head is frozen. :func:`pseudo_labels` makes the pseudo-labels from all
    training samples of the targets in evaluation mode, at the start and after every ``refresh_every`` steps. SHOT-IM is
    ``pseudo_weight=0``.

    Liang et al., Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
    Adaptation, ICML 2020, https://arxiv.org/abs/2002.08546. Its source model has a bottleneck of 256 without ReLU, a
    weight-normalised head and labels smoothed by 0.1 (``experiments/digits/shot_source.yaml``), but any checkpoint
    works. Batches of 64; the backbone learns at a tenth of the rate (``network.backbone_lr: 0.1``).

    The control is the source model with BatchNorm statistics that move to the target's as they do here; all its weights
    stay as they were. It needs ``weight_decay=0``, since weight decay alone would shrink them.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        checkpoint: the source model: a checkpoint, or the directory of a run; ``None`` for a network with a pretrained
            head.
        weight: weight of the information maximisation.
        pseudo_weight: weight of the cross-entropy with the pseudo-labels (0.3; the authors' code: 0.1 for digits).
        pseudo_delay: number of refreshes before that term is used (the authors' code: 1 for VisDA).
        threshold: a class with at most this many samples is not used as a pseudo-label (the authors' code: 10 for
            partial label sets).
        refresh_every: steps between two refreshes; ``None``: one pass over the targets' training samples.
        epsilon: constant added inside the logarithm of the entropies (the authors' code: 1e-5).
        optimizer: see the base (the authors' code: SGD with Nesterov's momentum).
        weight_decay: weight decay of all parameters.
        base: see :class:`~dafw.methods.base.Method`. Its rate 0.01 (1 + 10 p)^-0.75 is SHOT's, except on VisDA (0.001).
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "pseudo_weight": 0.0, "weight_decay": 0.0}
    control_difference_reason: ClassVar[str] = "it is the source model, untouched but for BatchNorm statistics"
    search_space: ClassVar[dict[str, Any]] = {"pseudo_weight": (0.05, 1.0), "lr": (1e-4, 1e-1)}

    variable_buffers = ("pseudo",)
    pseudo: Tensor
    starts: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        checkpoint: str | None = None,
        weight: NonNegativeFloat = 1.0,
        pseudo_weight: NonNegativeFloat = 0.3,
        pseudo_delay: NonNegativeInt = 0,
        threshold: NonNegativeInt = 0,
        refresh_every: PositiveInt | None = None,
        epsilon: ClosedUnitInterval = 0.0,
        optimizer: str = "sgd",
        weight_decay: float = 1e-3,
        **base,
    ) -> None:
        super().__init__(network, checkpoint=checkpoint, optimizer=optimizer, weight_decay=weight_decay, **base)
        self.weight, self.pseudo_weight, self.pseudo_delay = weight, pseudo_weight, pseudo_delay
        self.threshold, self.refresh_every, self.epsilon = threshold, refresh_every, epsilon
        assert network.head is not None
        network.head.requires_grad_(False)
        self.register_buffer("pseudo", torch.empty(0, dtype=torch.int64))
        self.register_buffer("starts", torch.empty(0, dtype=torch.int64), persistent=False)

    def adapt(self, target: Outputs, batch: Batch) -> Losses:
        """Information maximisation, and the cross-entropy of the batch with its pseudo-labels."""
        terms = {"information": self.weight * information_maximisation(target.logits, epsilon=self.epsilon)}
        if self.pseudo_weight and self.step >= self.pseudo_delay * self.interval:
            terms["pseudo"] = self.pseudo_weight * F.cross_entropy(target.logits, self.labels_of(batch))
        return terms

    def labels_of(self, batch: Batch) -> Tensor:
        """Pseudo-labels (n,) of the batch's rows."""
        return self.pseudo[self.starts[batch.domain] + batch.index]

    # ---- pseudo-labels

    @property
    def interval(self) -> int:
        """Steps between two refreshes."""
        if self.refresh_every is not None:
            return self.refresh_every
        data: Any = self.data
        longest: int = max(map(len, data.train_domains))
        return -(-longest // int(data.target_batch_size))

    def on_train_start(self) -> None:
        """Refreshes if training starts at a step at which a refresh is due."""
        data: Any = self.data
        sizes = torch.tensor([len(domain) for domain in data.train_domains])
        self.starts = (sizes.cumsum(0) - sizes).to(self.device)
        self.refresh()

    def commit(self, batch: Batch) -> None:
        """Refreshes if it is time, and a step follows."""
        super().commit(batch)
        if self.steps_done < self.steps_planned:
            self.refresh()

    def refresh(self) -> None:
        """Makes new pseudo-labels every :attr:`interval` steps. The ranks share the forward; each has all labels."""
        if not self.pseudo_weight or self.steps_done % self.interval:
            return
        outputs = target_outputs(self)
        self.pseudo = pseudo_labels(outputs.features, outputs.logits, self.threshold)


def pseudo_labels(features: Tensor, logits: Tensor, threshold: int = 0) -> Tensor:
    """The class whose centroid has the smallest cosine distance to a sample, computed in two rounds.

    u_i = [f_i, 1] / |[f_i, 1]|. The centroids of the first round are c_k = sum_i p_ik u_i / sum_i p_ik, where p is the
    softmax of the logits. Those of the second round are the means of u_i over the samples that the first round gave to
    k. Each round uses only classes that had more than ``threshold`` samples before it (by argmax of p, then by the
    first round). If no class had, it uses all classes with a sample.

    Args:
        features: (n, d).
        logits: (n, K).
        threshold: see above.

    Returns:
        (n,) int64.
    """
    features, shares = full_precision(features), full_precision(logits).softmax(1)
    units = F.normalize(torch.cat([features, features.new_ones(len(features), 1)], 1), dim=1)
    labels = shares.argmax(1)
    for _ in range(2):
        counts = F.one_hot(labels, shares.shape[1]).sum(0)
        kept = torch.where((counts > threshold).any(), counts > threshold, counts > 0)
        centroids = shares.T @ units / (1e-8 + shares.sum(0)[:, None])
        similarities = units @ F.normalize(centroids, dim=1).T
        labels = similarities.masked_fill(~kept, -torch.inf).argmax(1)
        shares = F.one_hot(labels, shares.shape[1]).to(units.dtype)
    return labels
