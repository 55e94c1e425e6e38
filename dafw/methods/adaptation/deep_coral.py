"""Deep CORAL: aligned covariances."""

from typing import Any, ClassVar, Literal

from dafw.losses.coral import coral, mean_and_covariance
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat


class DeepCORAL(AdaptationMethod):
    """Aligns the covariances of source and target activations.

    Loss: CE(source) + weight * ||C_s - C_t||_F^2 / (4 d^2), where C is the covariance of activations (n, d) over the
    batch.

    Sun and Saenko, Deep CORAL, ECCV 2016 workshops, https://arxiv.org/abs/1607.01719, equations 1 and 6. The paper
    aligns the class scores of the last layer, and chooses the weight so that both losses have the same size at the end.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the alignment loss.
        layer: the activations that are aligned: ``logits`` (paper) or ``features`` (tllib, DomainBed).
        moments: ``covariance`` (paper) or ``mean_and_covariance``, mean squared differences of both (tllib, DomainBed).
        base: see :class:`~dafw.methods.base.Method`.
    """

    least_rows: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 100.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 1.0,
        layer: Literal["logits", "features"] = "logits",
        moments: Literal["covariance", "mean_and_covariance"] = "covariance",
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.layer = weight, layer
        self.distance = coral if moments == "covariance" else mean_and_covariance

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The alignment loss over the rows of all ranks."""
        distance = self.distance(getattr(source, self.layer), getattr(target, self.layer))
        return {"coral": self.weight * distance}
