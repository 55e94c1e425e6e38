"""Every method, by name."""

from dafw.methods.adaptation import (
    ADDA,
    AFN,
    BNM,
    CDAN,
    DAN,
    DANN,
    DCAN,
    GDCAN,
    JAN,
    MCC,
    MCD,
    MDD,
    AdaBN,
    DeepCORAL,
    FixMatch,
    SourceOnly,
)
from dafw.methods.base import AdaptationMethod, Losses, Method
from dafw.methods.source_free import SHOT, SourceFreeMethod

__all__ = [
    "ADDA",
    "AFN",
    "BNM",
    "CDAN",
    "DAN",
    "DANN",
    "DCAN",
    "GDCAN",
    "JAN",
    "MCC",
    "MCD",
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
