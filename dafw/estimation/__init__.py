"""Estimators: the accuracy on a target without labels, from what a run keeps of its source.

They need no torch. The shift scores need it where features are compared.
"""

from dafw.estimation.base import Estimate, Estimator, Observed, Scores
from dafw.estimation.estimating import ESTIMATORS, OtherModel, estimates
from dafw.estimation.report import Report
from dafw.estimation.shift import ShiftScore, shift_scores, warning
from dafw.estimation.source_evidence import SourceEvidence, digests
from dafw.estimation.thresholded_confidence import ThresholdedEntropy

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Observed",
    "OtherModel",
    "Report",
    "Scores",
    "ShiftScore",
    "SourceEvidence",
    "ThresholdedEntropy",
    "digests",
    "estimates",
    "shift_scores",
    "warning",
]
