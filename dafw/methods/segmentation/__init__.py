"""Methods that exist for masks alone. Each is of its own setting."""

from dafw.methods.segmentation.adaptsegnet import AdaptSegNet
from dafw.methods.segmentation.advent import Advent
from dafw.methods.segmentation.dacs import Dacs
from dafw.methods.segmentation.daformer import DAFormer
from dafw.methods.segmentation.minent import MinEnt
from dafw.methods.segmentation.pareto_advent import ParetoAdvent

__all__ = ["AdaptSegNet", "Advent", "DAFormer", "Dacs", "MinEnt", "ParetoAdvent"]
