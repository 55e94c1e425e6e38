"""What is predicted: a problem knows the supervised loss, the metrics and the form of a prediction."""

from dafw.problems.base import Problem
from dafw.problems.classification import Classification
from dafw.problems.outputs import Outputs

__all__ = ["Classification", "Outputs", "Problem"]
