"""What methods with one critic behind a gradient reversal share: the ramp, the weighted term, the diagnostics."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.optim.schedules import dann_ramp
from dafw.problems import NetworkBase
from dafw.ranges import NonNegativeFloat, PositiveInt


class AdversarialMethod(AdaptationMethod, abstract=True):
    """Base of methods whose critic lowers a loss that the features, through a reversed gradient, raise.

    Args:
        network: images to outputs, which the method's kinds of problem have.
        weight: weight of the domain loss; methods that differ set their own default.
        gamma: steepness of the reversal's ramp.
        ramp_steps: ramp over this many steps instead of over the training.
        ramp_height: where the ramp ends.
        base: see :class:`~dafw.methods.base.Method`.
    """

    adversarial: ClassVar[tuple[str, ...]] = ("domain",)

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        weight: NonNegativeFloat = 1.0,
        gamma: NonNegativeFloat = 10.0,
        ramp_steps: PositiveInt | None = None,
        ramp_height: NonNegativeFloat = 1.0,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.gamma, self.ramp_steps, self.ramp_height = weight, gamma, ramp_steps, ramp_height

    @property
    def ramp(self) -> float:
        """Scale of the reversed gradient at this step."""
        progress = self.step / self.ramp_steps if self.ramp_steps else self.progress
        return self.ramp_height * dann_ramp(progress, self.gamma)

    def domain_loss(self, outputs: Any, num_source: int) -> Tensor:
        """The critic's loss, unweighted; through the features its gradient is reversed and scaled by :attr:`ramp`.

        Args:
            outputs: of both domains, source rows first.
            num_source: number of source rows.

        Returns:
            A scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must define domain_loss(outputs, num_source)")

    def adapt(self, source: Any, target: Any, joint: Any) -> Losses:
        """The domain loss of all rows."""
        loss = self.domain_loss(joint, len(source))
        return {"domain": loss if self.weight == 1 else self.weight * loss}

    def diagnose_critic(self, says_source: Tensor, num_source: int) -> None:
        """Share of each domain's rows that the critic gets right: 0.5 is confusion, 1.0 a critic that has won.

        Args:
            says_source: (N,) bool, whether the critic takes a row for the source's, source rows first.
            num_source: number of source rows.
        """
        self.diagnose("critic_accuracy_source", says_source[:num_source].float().mean())
        self.diagnose("critic_accuracy_target", 1 - says_source[num_source:].float().mean())
        self.diagnose("ramp", self.ramp)
