"""MinEnt: masks that are sure of each pixel of the target."""

from typing import Any, ClassVar

from dafw.losses.maps import normalised_entropy
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.methods.segmentation.levels import Levels, scores_of_levels
from dafw.nn.norm import NormMode
from dafw.problems import MaskOutputs, NetworkBase
from dafw.ranges import NonNegativeFloat


class MinEnt(AdaptationMethod):
    """Trains masks that are sure of the class of each pixel of the target.

    Loss: CE(source) + weight * mean over pixels of -sum_k p_k log p_k / log K, with p = softmax(logits) of the target,
    (n_t, K, H, W). With two levels the scores of the network's auxiliary head have a term of their own, times
    ``auxiliary_share``.

    Vu et al., ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation, CVPR 2019,
    https://arxiv.org/abs/1811.12833, section 3.1; the loss was read in the authors' code. Its prior of the class
    ratio, for SYNTHIA alone, is not here.

    Args:
        network: images (N, 3, H, W) to outputs with logits (N, K, H, W).
        levels: 1, the main scores; 2, those of the auxiliary head too (authors: 2).
        weight: weight of the entropy (paper: 0.001).
        auxiliary_share: share of ``weight`` for the auxiliary head (authors: 0.2, a weight of 0.0002).
        base: see :class:`~dafw.methods.base.Method`. Authors: SGD with momentum 0.9, rate 2.5e-4 (1 - p)^0.9, ten
            times that for the heads, weight decay 5e-4, one image of each domain, each passed alone.
    """

    kinds: ClassVar[tuple[str, ...]] = ("segmentation",)
    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (1e-4, 1e-1), "lr": (1e-4, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        levels: Levels = 1,
        weight: NonNegativeFloat = 1e-3,
        auxiliary_share: NonNegativeFloat = 0.2,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.levels, self.weight, self.auxiliary_share = levels, weight, auxiliary_share

    def adapt(self, source: MaskOutputs, target: MaskOutputs, joint: MaskOutputs) -> Losses:
        """The entropy of each level."""
        weights = (self.weight, self.weight * self.auxiliary_share)
        levels = scores_of_levels(target, self.levels).items()
        return {
            f"entropy{suffix}": weight * normalised_entropy(logits, target.valid())
            for (suffix, logits), weight in zip(levels, weights, strict=False)
        }
