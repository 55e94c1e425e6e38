"""Average confidence."""

from typing import ClassVar

from dafw.estimation.base import Estimator, Observed


class AverageConfidence(Estimator):
    """AC: mean_i max_k p_k(x_i) over target samples.

    It is right if the probabilities are calibrated on the target: of the samples predicted with 80 %, 80 % are right.
    It reads no source sample. A network that collapses with confidence has an estimate near 1.
    """

    name: ClassVar[str] = "ac"
    title: ClassVar[str] = "average confidence"
    reference: ClassVar[str] = "Hendrycks & Gimpel, ICLR 2017, https://arxiv.org/abs/1610.02136"

    def value(self, observed: Observed) -> float:
        """The mean of the largest probabilities."""
        return float(observed.target.confidence.mean())
