"""What is predicted: a problem knows the supervised loss, the metrics and the form of a prediction."""

from dafw.problems.base import Predicted, Problem, Shown
from dafw.problems.classification import Classification
from dafw.problems.detection import Detection
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import BoxOutputs, MaskOutputs, Outputs, Regions, RowOutputs
from dafw.problems.rows import TensorRows
from dafw.problems.segmentation import Segmentation

USUAL = {"classification": Classification, "segmentation": Segmentation, "detection": Detection}
"""The problem of each kind that is meant if none is given."""

__all__ = [
    "USUAL",
    "BoxOutputs",
    "Classification",
    "Detection",
    "MaskOutputs",
    "NetworkBase",
    "Outputs",
    "Predicted",
    "Problem",
    "Regions",
    "RowOutputs",
    "Segmentation",
    "Shown",
    "TensorRows",
]
