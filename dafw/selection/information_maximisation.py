"""Mutual information between target samples and their predictions."""

from typing import ClassVar

from torch import Tensor

from dafw.losses.entropy import mutual_information
from dafw.selection.base import Evidence, Validator, precise


class InformationMaximisation(Validator):
    """H(mean_i p_i) - mean_i H(p_i) over target samples, 0 to log K: high if predictions are confident and diverse.

    Constant predictions score 0. It favours balanced classes, even if the target's classes are not balanced.
    """

    name: ClassVar[str] = "im"
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[str] = "Musgrave et al., 2021, https://arxiv.org/abs/2111.15672"

    def __call__(self, evidence: Evidence) -> Tensor:
        """Mutual information in nats, 0 to log K."""
        return mutual_information(precise(evidence.target_logits))
