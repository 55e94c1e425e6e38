"""Mean entropy of the target predictions."""

from typing import ClassVar

from torch import Tensor

from dafw.losses.entropy import mean_entropy
from dafw.selection.base import Evidence, Validator, precise


class Entropy(Validator):
    """mean_i H(p_i) over target samples: how uncertain the predictions are, 0 to log K.

    A network that predicts the same class for every sample with certainty has the best possible score.
    """

    name: ClassVar[str] = "entropy"
    higher_is_better: ClassVar[bool] = False
    reference: ClassVar[str] = "Morerio et al., ICLR 2018, https://arxiv.org/abs/1711.10288"

    def __call__(self, evidence: Evidence) -> Tensor:
        """Mean entropy in nats, 0 to log K."""
        return mean_entropy(precise(evidence.target_logits))
