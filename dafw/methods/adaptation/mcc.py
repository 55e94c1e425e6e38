"""MCC: minimum class confusion."""

from typing import Any, ClassVar

from dafw.losses.confusion import class_confusion
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveFloat


class MCC(AdaptationMethod):
    """Trains predictions on the target that do not waver between pairs of classes.

    Loss: CE(source) + weight * confusion(logits_t), logits (n, K). The confusion is the mean over classes of the share
    of a class's softened predictions that falls on other classes; each target row is weighted by 1 + exp(-entropy).

    Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020, https://arxiv.org/abs/1912.03699.
    Temperature and weight are those of the Transfer-Learning-Library (read); the paper's are, as recalled, the same.
    That library trains it with batches of 36, lr 0.005 and weight decay 0.001.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        temperature: divides the logits before the softmax (2.5; tllib: 3 on VisDA, 2 on DomainNet).
        weight: weight of the confusion (1; tllib: 10 on DomainNet).
        base: see :class:`~dafw.methods.base.Method`.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"temperature": (1.0, 5.0), "weight": (0.3, 10.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, temperature: PositiveFloat = 2.5, weight: NonNegativeFloat = 1.0, **base
    ) -> None:
        super().__init__(network, **base)
        self.temperature, self.weight = temperature, weight

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The confusion of the target rows of all ranks."""
        return {"confusion": self.weight * class_confusion(target.logits, temperature=self.temperature)}
