"""Deep CORAL: aligned covariances."""

from typing import Any, ClassVar, Literal

from dafw.losses.coral import coral, mean_and_covariance
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.problems import NetworkBase, RowOutputs
from dafw.ranges import NonNegativeFloat


class DeepCORAL(AdaptationMethod):
    """Aligns the covariances of source and target activations.

    Loss: CE(source) + weight * ||C_s - C_t||_F^2 / (4 d^2), where C is the covariance of activations (n, d) over the
    batch. For masks (a choice of dafw, the paper has classes alone) CE is the loss of masks, and the rows are the
    pixels of a fixed grid on each image, as many as the problem's ``evidence_grid`` says.

    Sun and Saenko, Deep CORAL, ECCV 2016 workshops, https://arxiv.org/abs/1607.01719, equations 1 and 6. The paper
    aligns the class scores of the last layer, and chooses the weight so that both losses have the same size at the end.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K), or to maps of both.
        weight: weight of the alignment loss.
        layer: the activations that are aligned: ``logits`` (paper) or ``features`` (tllib, DomainBed).
        moments: ``covariance`` (paper) or ``mean_and_covariance``, mean squared differences of both (tllib, DomainBed).
        base: see :class:`~dafw.methods.base.Method`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "segmentation")
    least_rows: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 100.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        weight: NonNegativeFloat = 1.0,
        layer: Literal["logits", "features"] = "logits",
        moments: Literal["covariance", "mean_and_covariance"] = "covariance",
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.layer = weight, layer
        self.distance = coral if moments == "covariance" else mean_and_covariance

    def adapt(self, source: RowOutputs, target: RowOutputs, joint: RowOutputs) -> Losses:
        """The alignment loss over the rows of all ranks."""
        place = ("features", "logits").index(self.layer)
        distance = self.distance(*(self.problem.evidence(outputs)[place] for outputs in (source, target)))
        return {"coral": self.weight * distance}
