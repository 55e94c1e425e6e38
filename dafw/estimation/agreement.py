"""Agreement of two trainings."""

from typing import ClassVar

from dafw.estimation.base import Estimator, Observed


class Agreement(Estimator):
    """GDE: the share of target samples for which two models predict the same class, a mean over the other models.

    The generalisation disagreement equality: the expected error of a training equals the expected disagreement of two
    trainings that differ in their seed alone, if their ensemble is calibrated on the target. Two checkpoints of one
    training agree more than two seeds do, which makes the estimate too high.
    """

    name: ClassVar[str] = "gde"
    title: ClassVar[str] = "agreement of seeds"
    needs_models: ClassVar[int] = 1
    reference: ClassVar[str] = "Jiang et al., ICLR 2022, https://arxiv.org/abs/2106.13799"

    def value(self, observed: Observed) -> float:
        """The mean agreement of this model with each other one."""
        return float((observed.others == observed.target.prediction).mean())
