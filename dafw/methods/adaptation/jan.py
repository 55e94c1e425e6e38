"""JAN: joint adaptation network."""

from typing import Any, ClassVar, Literal

from dafw.errors import UserError
from dafw.losses.mmd import joint_mk_mmd
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveFloat


class JAN(AdaptationMethod):
    """Aligns the joint mean of features and predictions of both domains in a reproducing-kernel Hilbert space.

    Loss: CE(source) + weight * MMD^2 of (f_s, p_s) and (f_t, p_t), features f (n, d), p = softmax(logits) (n, K). The
    kernel is a product of two. The kernel of the features is an average of Gaussians with widths that are multiples of
    their mean squared distance. That of the predictions is one Gaussian with standard deviation ``sigma``.

    Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017, https://arxiv.org/abs/1605.06636.
    Recalled, not looked up: the paper estimates in linear time (``linear``) and raises its weight from 0 to 1 by
    DANN's ramp. sigma is the Transfer-Learning-Library's (read), which by default estimates in quadratic time. The
    adversarial variant (JAN-A) is not here.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the discrepancy (tllib: 1).
        sigma: standard deviation of the Gaussian of the predictions.
        estimator: ``unbiased``, ``biased`` or ``tllib``. The last sums the kernels of the features instead of averaging
            them (with its five kernels five times the unbiased value) and adds a constant.
        linear: use the estimate in linear time, from pairs of neighbours in the batch.
        base: see :class:`~dafw.methods.base.Method`. tllib trains it with lr 0.003.
    """

    least_rows: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 5.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 1.0,
        sigma: PositiveFloat = 0.92,
        estimator: Literal["unbiased", "biased", "tllib"] = "unbiased",
        linear: bool = False,
        **base,
    ) -> None:
        super().__init__(network, **base)
        if linear and estimator == "biased":
            raise UserError("there is no biased estimate in linear time: leave out model.linear or model.estimator")
        self.weight, self.sigma, self.estimator, self.linear = weight, sigma, estimator, linear
        self.equal_rows = linear or estimator == "tllib"

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The joint discrepancy over the rows of all ranks."""
        value = joint_mk_mmd(
            (source.features, source.logits),
            (target.features, target.logits),
            sigma=self.sigma,
            estimator=self.estimator,
            linear=self.linear,
        )
        return {"joint_mmd": self.weight * value}
