"""Estimated accuracy: average thresholded confidence."""

from typing import ClassVar

from torch import Tensor

from dafw.estimation import Observed, ThresholdedEntropy
from dafw.selection.base import Evidence, Validator, precise


class ThresholdedConfidence(Validator):
    """ATC-NE: the share of target samples whose negative entropy reaches a threshold that is right on the source.

    It is the estimate of accuracy of the same name, see :class:`dafw.estimation.ThresholdedEntropy`. It takes the
    held-out source samples of the validation.
    """

    name: ClassVar[str] = "atc_ne"
    higher_is_better: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    reference: ClassVar[str] = ThresholdedEntropy.reference

    def __call__(self, evidence: Evidence) -> Tensor:
        """The estimated accuracy, 0 to 1; nan without a sample, and if a logit is not finite."""
        source, target = precise(evidence.source_logits), precise(evidence.target_logits)
        if not len(target) or not len(source) or not (source.isfinite().all() and target.isfinite().all()):
            return target.new_tensor(float("nan"))
        seen = Observed.of(source, evidence.source_labels, target)
        return target.new_tensor(ThresholdedEntropy().value(seen))
