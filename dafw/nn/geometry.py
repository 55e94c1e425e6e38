"""Affine maps with which methods carry labels and dense maps from view to view, see :mod:`dafw.data.geometry`."""

from dafw.data.geometry import bilinear, compose, invert, move_boxes, move_points, nearest

__all__ = ["bilinear", "compose", "invert", "move_boxes", "move_points", "nearest"]
