"""Methods that see a trained model and unlabelled targets, but no source."""

from dafw.methods.source_free.base import SourceFreeMethod
from dafw.methods.source_free.shot import SHOT

__all__ = ["SHOT", "SourceFreeMethod"]
