"""OSUDA: batch normalisation moves to the target, and holds what transfers."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.losses.pixel_terms import pixel_entropy
from dafw.methods.base import Losses
from dafw.methods.source_free.base import SourceFreeMethod
from dafw.nn.norm import DomainBatchNorm
from dafw.nn.statistics import batch_norms
from dafw.problems.model import NetworkBase
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt

#: What a layer's scale, shift and running statistics are called.
STATE = ("weight", "bias", "running_mean", "running_var")


class OSUDA(SourceFreeMethod):
    """Batch statistics follow the target ever faster; scales and shifts of transferable channels are held.

    Loss: weight * sum_c (1 + a_c) (|g_c - g_c^s| + |b_c - b_c^s|) + entropy_weight * (1 - q) * mean_i H(p_i). The sum
    is over the channels c of all batch normalisation layers, with scales g and shifts b, and g^s and b^s of the source
    model. H is the entropy of pixel i, logits (n, K, H, W). q in [0, 1] is the share of training done.

    Before a batch is normalised, the running statistics m become (1 - e) m_batch + e m, with e = momentum * exp(-t), at
    least ``least_momentum``. They then normalise the batch. t counts stretches of ``decay_steps`` steps. The distance
    d_c = |m^s / sqrt(v^s + eps) - m / sqrt(v + eps)| between source and target gives the transferability of a channel:
    a_c = C / (1 + d_c) / sum_j 1 / (1 + d_j), with mean 1 over the C channels.

    Liu et al., Adapting Off-the-Shelf Source Segmenter for Target Medical Image Segmentation, MICCAI 2021,
    https://arxiv.org/abs/2106.12497. There is no public code. The formulas were recalled, and this is no reproduction.
    The constants ``momentum``, ``least_momentum`` and ``decay_steps`` and the learning rate are our reading or our
    choice. ``least_momentum`` is ours: without it the statistics become those of one batch.

    The control moves the statistics alone; all weights stay the source model's. It needs ``weight_decay=0``.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W), with batch normalisation.
        checkpoint: the source model: a checkpoint, or the directory of a run.
        weight: weight of the held scales and shifts (ours: 1).
        entropy_weight: weight of the entropy at the start, which falls to 0 (recalled: 10).
        momentum: e at the first step (ours: 0.99).
        least_momentum: the least e (ours: 0.9).
        decay_steps: steps in which e falls to 1 / exp(1) of itself; an epoch if ``None`` (ours).
        trains: ``all`` weights, or those of batch normalisation alone (``norm``).
        optimizer: see the base (ours: Adam).
        lr: see the base (ours: 3e-5).
        base: see :class:`~dafw.methods.base.Method`. Under ``norm: frozen`` the statistics stay the source model's.

    Raises:
        UserError: if the network has no batch normalisation, naming what it has.
    """

    kinds = ("segmentation",)
    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "entropy_weight": 0.0, "weight_decay": 0.0}
    control_difference_reason: ClassVar[str] = "it is the source model, untouched but for BatchNorm statistics"
    search_space: ClassVar[dict[str, Any]] = {"least_momentum": (0.5, 0.99), "lr": (1e-6, 1e-3)}
    source_weight: Tensor
    source_bias: Tensor
    source_running_mean: Tensor
    source_running_var: Tensor
    epsilon: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        checkpoint: str | None = None,
        weight: NonNegativeFloat = 1.0,
        entropy_weight: NonNegativeFloat = 10.0,
        momentum: ClosedUnitInterval = 0.99,
        least_momentum: ClosedUnitInterval = 0.9,
        decay_steps: PositiveInt | None = None,
        trains: Literal["all", "norm"] = "all",
        optimizer: str = "adam",
        lr: PositiveFloat = 3e-5,
        **base,
    ) -> None:
        super().__init__(network, checkpoint=checkpoint, optimizer=optimizer, lr=lr, **base)
        self.weight, self.entropy_weight = weight, entropy_weight
        self.first_momentum, self.least_momentum, self.decay_steps = momentum, least_momentum, decay_steps
        self.layers = [layer for layer in batch_norms(network) if has_state(layer)]
        if not self.layers:
            named = [f"{name} ({type(part).__name__})" for name, part in network.named_modules() if normalises(part)]
            has = f"its normalisation layers are {', '.join(named)}" if named else "it has no normalisation layer"
            raise UserError(f"OSUDA moves statistics of batch normalisation, and model.network has none: {has}")
        for layer in self.layers:
            layer.follows = self.norm != "frozen"
        if choose("model.trains", trains, ("all", "norm")) == "norm":
            network.requires_grad_(False)
            for layer in self.layers:
                layer.requires_grad_(True)
        for name in STATE:
            self.register_buffer(f"source_{name}", self.state(name).detach().clone())
        epsilons = [torch.full((layer.num_features,), layer.eps) for layer in self.layers]
        self.register_buffer("epsilon", torch.cat(epsilons), persistent=False)

    def state(self, name: str) -> Tensor:
        """Scales, shifts or running statistics of all layers, one after the other, (C,)."""
        return torch.cat([getattr(layer, name) for layer in self.layers])

    def momentum_at(self, step: int) -> float:
        """e, the share that the running statistics keep of themselves in a step."""
        stretch = self.decay_steps or int(self.trainer.num_training_batches)
        return max(self.least_momentum, self.first_momentum * math.exp(-step / stretch))

    def transferability(self) -> Tensor:
        """The a (C,), with mean 1: the larger, the nearer the target's statistics of a channel are to the source's."""
        source = self.source_running_mean * (self.source_running_var + self.epsilon).rsqrt()
        target = self.state("running_mean") * (self.state("running_var") + self.epsilon).rsqrt()
        near = 1 / (1 + (source - target).abs())
        return near / near.mean()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """As the base; sets how far the statistics move in this step."""
        super().on_train_batch_start(batch, batch_idx)
        for layer in self.layers:
            layer.momentum = 1 - self.momentum_at(self.step)

    def adapt(self, target: Any, batch: Batch) -> Losses:
        """The distance of scales and shifts from the source model's, and the entropy of the pixels."""
        moved = (self.state("weight") - self.source_weight).abs() + (self.state("bias") - self.source_bias).abs()
        share = 1 - self.progress
        return {
            "held": self.weight * ((1 + self.transferability().detach()) * moved).sum(),
            "entropy": self.entropy_weight * share * pixel_entropy(target.logits, target.valid()),
        }


def has_state(layer: DomainBatchNorm) -> bool:
    """Whether a layer has a scale, a shift and running statistics, and whether these may move."""
    return all(getattr(layer, name) is not None for name in STATE)


def normalises(part: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by its name."""
    return type(part).__name__.lower().endswith(("norm", "norm1d", "norm2d", "norm3d"))
