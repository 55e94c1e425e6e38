"""Every method, by name."""

from dafw.methods.adaptation import CDAN, DAN, DANN, DCAN, GDCAN, MDD, AdaBN, DeepCORAL, FixMatch, SourceOnly
from dafw.methods.base import AdaptationMethod, Losses, Method
from dafw.methods.source_free import SHOT, SourceFreeMethod

__all__ = [
    "CDAN",
    "DAN",
    "DANN",
    "DCAN",
    "GDCAN",
    "MDD",
    "SHOT",
    "AdaBN",
    "AdaptationMethod",
    "DeepCORAL",
    "FixMatch",
    "Losses",
    "Method",
    "SourceFreeMethod",
    "SourceOnly",
]
