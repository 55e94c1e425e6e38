"""Difference of confidences."""

from typing import ClassVar

from dafw.estimation.base import Estimator, Observed


class DifferenceOfConfidences(Estimator):
    """DoC: accuracy on the source - (average confidence on the source - average confidence on the target).

    The paper regresses the loss of accuracy on the difference of confidences, over shifts with known labels. Without
    such shifts at hand the loss is taken to be the difference itself, which the paper also reports. The estimate is
    right if the network is as much too confident on the target as on the source.
    """

    name: ClassVar[str] = "doc"
    title: ClassVar[str] = "difference of confidences"
    reference: ClassVar[str] = "Guillory et al., ICCV 2021, https://arxiv.org/abs/2107.03315"

    def value(self, observed: Observed) -> float:
        """The accuracy on the source less the difference of confidences, cut to [0, 1]."""
        difference = observed.source.confidence.mean() - observed.target.confidence.mean()
        return min(max(float(observed.correct.mean() - difference), 0.0), 1.0)
