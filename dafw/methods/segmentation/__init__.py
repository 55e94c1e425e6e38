"""Methods that exist for masks alone; each belongs to the setting of its base."""

from dafw.methods.segmentation.adami import AdaEnt, AdaMI
from dafw.methods.segmentation.adawac import AdaWAC
from dafw.methods.segmentation.cma import CMA
from dafw.methods.segmentation.fine_tune import FineTune
from dafw.methods.segmentation.osuda import OSUDA

__all__ = ["CMA", "OSUDA", "AdaEnt", "AdaMI", "AdaWAC", "FineTune"]
