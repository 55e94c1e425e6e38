"""AFN: adaptive feature norm."""

from typing import Any, ClassVar, Literal

from torch import nn

from dafw.losses.entropy import mean_entropy
from dafw.losses.norms import norm_to_radius, stepwise_norm
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.dropout import NormPreservingDropout
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat


class AFN(AdaptationMethod):
    """Makes the norms of both domains' features grow; target features are hard because their norms are small.

    Loss: CE(source) + weight * (L(f_s) + L(f_t)) + entropy_weight * mean entropy of the target's predictions, features
    (n, d). Stepwise (SAFN): L(f) = mean (|f| - |f|.detach() - step)^2. Its value is always step^2; its gradient makes
    every norm grow at the same rate. Hard (HAFN): L(f) = (mean |f| - radius)^2.

    Xu et al., Larger Norm More Transferable: An Adaptive Feature Norm Approach for Unsupervised Domain Adaptation, ICCV
    2019, https://arxiv.org/abs/1811.07456. Step 1 and weight 0.05 are the Transfer-Learning-Library's (read). The
    paper's are, as recalled, the same, and its radius is 25. The paper's features pass a dropout that preserves norms.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        variant: ``stepwise`` or ``hard``.
        step: growth of each norm that the stepwise variant aims at (tllib: 0.3 on VisDA).
        radius: mean norm that the hard variant aims at.
        weight: weight of the losses of the norms.
        entropy_weight: weight of the entropy (tllib: 0.1 on Office-31).
        dropout: share of the features to drop in training; the expected squared norm is preserved (tllib: 0.5). Each
            rank of a distributed run draws its own mask.
        base: see :class:`~dafw.methods.base.Method`. tllib: lr 0.001, constant, also for the backbone, which has no
            momentum (``parts: {backbone: {momentum: 0}}``); the new layers have 0.9.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "entropy_weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"step": (0.1, 2.0), "weight": (0.01, 0.2), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        variant: Literal["stepwise", "hard"] = "stepwise",
        step: NonNegativeFloat = 1.0,
        radius: PositiveFloat = 25.0,
        weight: NonNegativeFloat = 0.05,
        entropy_weight: NonNegativeFloat = 0.0,
        dropout: ClosedUnitInterval = 0.0,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.variant, self.growth, self.radius = variant, step, radius
        self.weight, self.entropy_weight = weight, entropy_weight
        if dropout:
            before = [] if network.bottleneck is None else list(network.bottleneck.children())
            network.bottleneck = nn.Sequential(*before, NormPreservingDropout(dropout))

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The norms of both domains, and the target's entropy if it has a weight."""
        if self.variant == "hard":
            norms = [norm_to_radius(outputs.features, self.radius) for outputs in (source, target)]
        else:
            norms = [stepwise_norm(outputs.features, self.growth) for outputs in (source, target)]
        terms = {"norm": self.weight * (norms[0] + norms[1])}
        if self.entropy_weight:
            terms["entropy"] = self.entropy_weight * mean_entropy(target.logits)
        return terms
