"""Figures from arrays. Nothing here imports torch or opens a window: the caller saves the figure."""

from pathlib import Path

from matplotlib.figure import Figure

from dafw.files import replacing
from dafw.plots.box_rows import BoxRow, boxes
from dafw.plots.confusion_matrix import confusion
from dafw.plots.embeddings import embedding
from dafw.plots.example_images import ExampleRow, Examples, examples
from dafw.plots.mask_rows import MaskRow, masks
from dafw.plots.run_curves import curves, read_metrics
from dafw.plots.style import COLOURS
from dafw.plots.table_figures import Dot, histories, table_bars

__all__ = [
    "COLOURS",
    "BoxRow",
    "Dot",
    "ExampleRow",
    "Examples",
    "MaskRow",
    "boxes",
    "confusion",
    "curves",
    "embedding",
    "examples",
    "histories",
    "masks",
    "read_metrics",
    "save",
    "table_bars",
]


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG in one step. The folder is made."""
    with replacing(path, sync=False) as file:
        figure.savefig(file, format="png", facecolor=figure.get_facecolor())
