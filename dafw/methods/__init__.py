"""Every method, by name."""

from dafw.methods.adaptation import DAN, DANN, AdaBN, DeepCORAL, SourceOnly
from dafw.methods.base import AdaptationMethod, Losses, Method

__all__ = ["DAN", "DANN", "AdaBN", "AdaptationMethod", "DeepCORAL", "Losses", "Method", "SourceOnly"]
