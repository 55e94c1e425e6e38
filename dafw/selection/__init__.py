"""Validators: scores by which to choose a checkpoint without target labels."""

from dafw.selection.average_confidence import AverageConfidence
from dafw.selection.base import Evidence, Validator, together
from dafw.selection.dev import DeepEmbeddedValidation
from dafw.selection.entropy import Entropy
from dafw.selection.information_maximisation import InformationMaximisation
from dafw.selection.pseudo_boxes import PseudoBoxes
from dafw.selection.snd import SoftNeighbourhoodDensity
from dafw.selection.thresholded_confidence import ThresholdedConfidence

#: The validators by name. A run has those that its problem names. The option run.validators adds others. Source
#: accuracy and the oracle are not among them: they are metrics of the problem.
VALIDATORS: dict[str, type[Validator]] = {
    validator.name: validator
    for validator in (
        Entropy,
        InformationMaximisation,
        SoftNeighbourhoodDensity,
        DeepEmbeddedValidation,
        AverageConfidence,
        ThresholdedConfidence,
        PseudoBoxes,
    )
}

__all__ = [
    "VALIDATORS",
    "AverageConfidence",
    "DeepEmbeddedValidation",
    "Entropy",
    "Evidence",
    "InformationMaximisation",
    "PseudoBoxes",
    "SoftNeighbourhoodDensity",
    "ThresholdedConfidence",
    "Validator",
    "together",
]
