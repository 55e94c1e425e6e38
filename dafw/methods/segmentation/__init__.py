"""Methods that exist for masks alone; each belongs to the setting of its base."""

from dafw.methods.segmentation.adami import AdaEnt, AdaMI
from dafw.methods.segmentation.osuda import OSUDA

__all__ = ["OSUDA", "AdaEnt", "AdaMI"]
