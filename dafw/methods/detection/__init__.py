"""Methods that exist for boxes alone. Each is of its own setting."""

from dafw.methods.detection.mean_teacher import MeanTeacher
from dafw.methods.detection.source_free_teacher import SourceFreeTeacher
from dafw.methods.detection.wscol import WSCoL

__all__ = ["MeanTeacher", "SourceFreeTeacher", "WSCoL"]
