"""Methods for masks alone."""

from dafw.methods.segmentation.adaptsegnet import AdaptSegNet
from dafw.methods.segmentation.advent import Advent
from dafw.methods.segmentation.minent import MinEnt
from dafw.methods.segmentation.pareto_advent import ParetoAdvent

__all__ = [
    "AdaptSegNet",
    "Advent",
    "MinEnt",
    "ParetoAdvent",
]
