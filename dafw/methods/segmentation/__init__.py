"""Methods that exist for masks alone. Each is of its own setting."""

from dafw.methods.segmentation.adami import AdaEnt, AdaMI
from dafw.methods.segmentation.adaptsegnet import AdaptSegNet
from dafw.methods.segmentation.adawac import AdaWAC
from dafw.methods.segmentation.advent import Advent
from dafw.methods.segmentation.cma import CMA
from dafw.methods.segmentation.dacs import Dacs
from dafw.methods.segmentation.daformer import DAFormer
from dafw.methods.segmentation.fine_tune import FineTune
from dafw.methods.segmentation.idm import IDM
from dafw.methods.segmentation.minent import MinEnt
from dafw.methods.segmentation.osuda import OSUDA
from dafw.methods.segmentation.pareto_advent import ParetoAdvent

__all__ = [
    "CMA",
    "IDM",
    "OSUDA",
    "AdaEnt",
    "AdaMI",
    "AdaWAC",
    "AdaptSegNet",
    "Advent",
    "DAFormer",
    "Dacs",
    "FineTune",
    "MinEnt",
    "ParetoAdvent",
]
