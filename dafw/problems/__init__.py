"""What is predicted: a problem knows the supervised loss, the metrics and the form of a prediction."""

from dafw.problems.base import Predicted, Problem, Shown
from dafw.problems.classification import Classification
from dafw.problems.detection import Detection
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import BoxOutputs, MaskOutputs, Outputs, RowOutputs
from dafw.problems.rows import TensorRows
from dafw.problems.segmentation import Segmentation

__all__ = [
    "BoxOutputs",
    "Classification",
    "Detection",
    "MaskOutputs",
    "NetworkBase",
    "Outputs",
    "Predicted",
    "Problem",
    "RowOutputs",
    "Segmentation",
    "Shown",
    "TensorRows",
]
