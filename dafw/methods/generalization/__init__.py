"""Methods that see labelled sources and nothing of the target."""

from dafw.methods.generalization.base import GeneralizationMethod
from dafw.methods.generalization.erm import ERM

__all__ = ["ERM", "GeneralizationMethod"]
