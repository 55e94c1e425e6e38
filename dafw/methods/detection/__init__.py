"""Methods that exist for boxes alone. Each is of its own setting."""

from dafw.methods.detection.da_faster_rcnn import DAFasterRCNN
from dafw.methods.detection.domain_penalisation import DomainPenalisation
from dafw.methods.detection.nsa import NSA

__all__ = ["NSA", "DAFasterRCNN", "DomainPenalisation"]
