"""Methods that exist for masks alone. Each is of its own setting."""

from dafw.methods.segmentation.dacs import Dacs
from dafw.methods.segmentation.daformer import DAFormer

__all__ = ["DAFormer", "Dacs"]
