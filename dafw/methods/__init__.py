"""Every method, by name."""

from dafw.methods.adaptation import CDAN, DAN, DANN, MDD, AdaBN, DeepCORAL, FixMatch, SourceOnly
from dafw.methods.base import AdaptationMethod, Losses, Method

__all__ = [
    "CDAN",
    "DAN",
    "DANN",
    "MDD",
    "AdaBN",
    "AdaptationMethod",
    "DeepCORAL",
    "FixMatch",
    "Losses",
    "Method",
    "SourceOnly",
]
