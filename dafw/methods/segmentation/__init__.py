"""Methods that exist for masks alone. Each is of its own setting."""

from dafw.methods.segmentation.dacs import Dacs

__all__ = ["Dacs"]
