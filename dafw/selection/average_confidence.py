"""Estimated accuracy: average confidence."""

from typing import ClassVar

from torch import Tensor

from dafw.selection.base import Evidence, Validator, precise


class AverageConfidence(Validator):
    """mean_i max_k p_ik over target samples, 1 / K to 1: the estimate of accuracy of the same name.

    A network that predicts the same class for every sample with certainty has the best possible score.
    """

    name: ClassVar[str] = "ac"
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[str] = "Hendrycks & Gimpel, ICLR 2017, https://arxiv.org/abs/1610.02136"

    def __call__(self, evidence: Evidence) -> Tensor:
        """The mean of the largest probabilities; nan without a sample."""
        return precise(evidence.target_logits).softmax(-1).amax(-1).mean()
