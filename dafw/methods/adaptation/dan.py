"""DAN: deep adaptation network."""

from typing import Any, ClassVar, Literal

from dafw.errors import UserError
from dafw.losses.mmd import mk_mmd
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.problems import NetworkBase, RowOutputs
from dafw.ranges import NonNegativeFloat


class DAN(AdaptationMethod):
    """Aligns the mean of both domains' features in a reproducing-kernel Hilbert space.

    Loss: CE(source) + weight * MK-MMD^2(f_s, f_t), features (n, d). The kernel is a sum of Gaussians with widths that
    are multiples of the mean squared distance.

    Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015,
    https://arxiv.org/abs/1502.02791, equations 1 to 4. The paper weighs the kernels by a quadratic programme and aligns
    three layers of AlexNet. Here, as in later code (tllib), the kernels have equal weights and one layer is aligned.
    For masks (a choice of dafw, the paper has classes alone) CE is the loss of masks, and the rows are the places of
    the feature map on a fixed grid of each image, as many as the problem's ``evidence_grid`` says.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K), or to maps of both.
        weight: weight of the discrepancy (paper: chosen from 0.1 to 2; tllib: 1).
        estimator: ``unbiased``, ``biased`` or ``tllib``. The last sums the kernels instead of averaging them (with its
            five kernels five times the unbiased value) and adds a constant.
        linear: use the estimate in linear time, from pairs of neighbours in the batch (paper, equation 4).
        base: see :class:`~dafw.methods.base.Method`. tllib trains it with lr 0.003, and a bottleneck
            without batch normalisation.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "segmentation")
    least_rows: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 2.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        weight: NonNegativeFloat = 1.0,
        estimator: Literal["unbiased", "biased", "tllib"] = "unbiased",
        linear: bool = False,
        **base,
    ) -> None:
        super().__init__(network, **base)
        if linear and estimator == "biased":
            raise UserError("there is no biased estimate in linear time: leave out model.linear or model.estimator")
        self.weight, self.estimator, self.linear = weight, estimator, linear
        self.equal_rows = linear or estimator == "tllib"

    def adapt(self, source: RowOutputs, target: RowOutputs, joint: RowOutputs) -> Losses:
        """The discrepancy over the rows of all ranks."""
        features = [self.problem.evidence(outputs)[0] for outputs in (source, target)]
        return {"mmd": self.weight * mk_mmd(*features, estimator=self.estimator, linear=self.linear)}
