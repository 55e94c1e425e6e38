"""A checkpoint that a trainer wrote, and a run of the command on images."""

from trained_runs import arguments, folder, images, trained

__all__ = ["arguments", "folder", "images", "trained"]
