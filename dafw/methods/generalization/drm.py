"""DRM: a head for each source and a shared one. Each test sample weighs the heads by how sure they are of it."""

import math
from functools import reduce
from operator import add
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import choose
from dafw.losses.entropy import entropy
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod, split_domains
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.teacher import Teacher
from dafw.problems import Outputs
from dafw.ranges import Range

#: The least entropy that counts, in nats. It keeps the weight of a head with an entropy of 0 finite.
LEAST = 1e-8

#: How much entropies decide. Infinity serves the head of least entropy alone.
Gamma = Annotated[float, Range("must be 0 or more, or .inf", 0, finite=False)]


class DRM(GeneralizationMethod):
    """A label head for each source and a shared one. A prediction mixes them by their entropies.

    Loss: (1 - weight) * CE(shared head, all rows) + weight * 1/S sum_d CE(head d, rows of source d), means over rows.
    Features are (n, d); each of the S + 1 heads has logits (n, K).

    The prediction is p = sum_h w_h softmax(logits of head h) over all S + 1 heads with w_h = H_h^-gamma / sum_j
    H_j^-gamma. H_h is the entropy of head h's prediction for that sample. No other sample matters. The logits are
    log p.

    Its retraining on the test stream is :class:`~dafw.methods.test_time.drm_retraining.DRMRetraining`.

    Zhang et al., Domain-Specific Risk Minimization for Domain Generalization, KDD 2023,
    https://arxiv.org/abs/2208.08661. The authors' program (repository yfzhang114/AdaNPC) searches gamma over 0, 0.5, 1,
    5 and the least entropy by the accuracy on the test domain, so there is no one default. ``mode: authors`` differs
    from the paper as their program does. Its validations evaluate the head with the least mean entropy over the batch.
    Its weights are normalised over S + 1 heads, but the sum leaves out the shared head unless gamma is infinite.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); its head is the shared one.
        num_classes: classes to predict.
        num_sources: number S of sources (the command line fills it in from the datamodule).
        weight: share of the sources' own heads in the loss (paper: 1/2), below 1. With 0 the shared head alone is
            trained and evaluated, which is ERM.
        gamma: how much entropies decide. 0 gives equal weights, ``.inf`` takes the head of least entropy alone.
        mode: ``paper``, or ``authors`` for what their program does.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: for values out of range.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"gamma": [0.0, 0.5, 1.0, 5.0], "weight": (0.1, 0.9), "lr": (1e-5, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        num_sources: int,
        weight: Annotated[float, Range("is a share, at least 0 and below 1", 0, 1, below=True)] = 0.5,
        gamma: Gamma = 1.0,
        mode: Literal["paper", "authors"] = "paper",
        **base,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **base)
        self.weight, self.gamma = weight, gamma
        self.mode = choose("mode", mode, ("paper", "authors"))
        self.heads = nn.ModuleList(network.make_head(num_classes) for _ in range(num_sources)).to(network.shift)
        self.average_heads = None if self.weight_average is None else Teacher(self.heads, self.weight_average.decay)
        self.picks_one = self.mode == "authors"
        if self.picks_one:
            reasons = [self.transductive_reason] if self.transductive_reason else []
            self.transductive_reason = "; ".join([*reasons, "validations choose one head for all samples of a batch"])

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """The shared head's supervised loss of all rows, and each other head's loss of the rows of its source."""
        joint = self.forward_batch(batch)
        domains, labels = split_domains(joint, batch.y, self.num_domains(batch))
        own = [
            self.problem.loss(Outputs(rows.features, head(rows.features)), y)
            for head, rows, y in zip(self.heads, domains, labels, strict=True)
        ]
        shared = self.problem.loss(joint, batch.y)
        return {"supervised": (1 - self.weight) * shared, "own_heads": self.weight * reduce(add, own) / len(own)}

    # ---- serving

    @property
    def eval_heads(self) -> list[nn.Module]:
        """The sources' own heads that are evaluated. There are none if they have no weight in training."""
        heads = self.heads if self.average_heads is None else self.average_heads.module
        assert isinstance(heads, nn.ModuleList)
        return list(heads) if self.weight else []

    def forward(self, x: Any) -> Outputs:
        """The outputs that are evaluated on the target, of images (N, C, H, W)."""
        return self.serve(super().forward(x))

    def prepare_evaluation(self, stage: str) -> None:
        """Notes whether a validation follows, for ``mode: authors``."""
        super().prepare_evaluation(stage)
        self.picks_one = self.mode == "authors" and stage == "validate"

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """The outputs of the heads together, see :meth:`serve`."""
        return self.serve(super().evaluate(batch, source))

    def serve(self, outputs: Outputs) -> Outputs:
        """The outputs of all trained heads together.

        Args:
            outputs: of n rows, by the shared head.
        """
        heads = self.eval_heads
        if not heads:
            return outputs
        logits = torch.stack([*(head(outputs.features) for head in heads), outputs.logits])
        if self.picks_one:
            return Outputs(outputs.features, logits[entropy(logits).mean(1).argmin()])
        return Outputs(outputs.features, mixture(logits, self.gamma, self.mode))


def mixture(logits: Tensor, gamma: float, mode: str) -> Tensor:
    """Logarithms of the mixture's probabilities, see :class:`DRM`.

    Args:
        logits: (H, n, K) of the heads, the shared one last.
        gamma: see :class:`DRM`.
        mode: ``paper`` or ``authors``.

    Returns:
        (n, K).
    """
    log_weights, log_p = entropy_weights(logits, gamma), full_precision(logits).log_softmax(-1)
    if mode == "authors" and math.isfinite(gamma) and len(logits) > 1:
        log_weights, log_p = log_weights[:-1], log_p[:-1]
    return (log_weights[..., None] + log_p).logsumexp(0)


def entropy_weights(logits: Tensor, gamma: float) -> Tensor:
    """Logarithms of H_h^-gamma / sum_j H_j^-gamma, with H_h the entropy of head h's prediction, at least 1e-8 nats.

    Args:
        logits: (H, n, K).
        gamma: 0 for equal weights; infinite for the head of least entropy, the first of equals.

    Returns:
        (H, n): for each sample the logarithms of weights that sum to 1 over the heads.
    """
    uncertainty = entropy(logits).clamp_min(LEAST)
    if math.isinf(gamma):
        return F.one_hot(uncertainty.argmin(0), len(logits)).T.to(uncertainty.dtype).log()
    return (-gamma * uncertainty.log()).log_softmax(0)
