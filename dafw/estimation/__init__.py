"""Estimators: the accuracy on a target without labels, from what a run keeps of its source. They need no torch."""

from dafw.estimation.base import Estimate, Estimator, Observed, Scores
from dafw.estimation.estimating import ESTIMATORS, OtherModel, estimates
from dafw.estimation.source_evidence import SourceEvidence, digests

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Observed",
    "OtherModel",
    "Scores",
    "SourceEvidence",
    "digests",
    "estimates",
]
