"""Validators: scores by which to choose a checkpoint. All but the oracle do without target labels."""

from dafw.selection.base import Evidence, Validator
from dafw.selection.dev import DeepEmbeddedValidation
from dafw.selection.entropy import Entropy
from dafw.selection.information_maximisation import InformationMaximisation
from dafw.selection.oracle import OracleAccuracy
from dafw.selection.snd import SoftNeighbourhoodDensity
from dafw.selection.source_accuracy import SourceAccuracy

VALIDATORS: dict[str, type[Validator]] = {
    validator.name: validator
    for validator in (
        SourceAccuracy,
        Entropy,
        InformationMaximisation,
        SoftNeighbourhoodDensity,
        DeepEmbeddedValidation,
    )
}

__all__ = [
    "VALIDATORS",
    "DeepEmbeddedValidation",
    "Entropy",
    "Evidence",
    "InformationMaximisation",
    "OracleAccuracy",
    "SoftNeighbourhoodDensity",
    "SourceAccuracy",
    "Validator",
]
