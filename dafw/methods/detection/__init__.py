"""Methods that exist for boxes alone. Each is of its own setting."""

from dafw.methods.detection.da_faster_rcnn import DAFasterRCNN
from dafw.methods.detection.domain_penalisation import DomainPenalisation
from dafw.methods.detection.mean_teacher import MeanTeacher
from dafw.methods.detection.nsa import NSA
from dafw.methods.detection.source_free_teacher import SourceFreeTeacher
from dafw.methods.detection.wscol import WSCoL

__all__ = ["NSA", "DAFasterRCNN", "DomainPenalisation", "MeanTeacher", "SourceFreeTeacher", "WSCoL"]
