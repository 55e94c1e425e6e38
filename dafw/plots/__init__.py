"""Figures from arrays. Nothing here imports torch or opens a window: the caller saves the figure."""

from pathlib import Path
from textwrap import wrap

from matplotlib.figure import Figure

from dafw import escape
from dafw.files import replacing
from dafw.plots.box_rows import Boxes, BoxRow, box_errors, boxes
from dafw.plots.confusion_matrix import confusion
from dafw.plots.embeddings import embedding
from dafw.plots.estimate_scatter import EstimateDot, estimate_scatter
from dafw.plots.example_images import ExampleRow, Examples, examples
from dafw.plots.mask_rows import MaskRow, masks
from dafw.plots.run_curves import curves, read_metrics
from dafw.plots.same_images import box_rows, kept_boxes, kept_masks, same_images
from dafw.plots.stream import stream_errors
from dafw.plots.style import COLOURS, INK
from dafw.plots.table_figures import Dot, histories, table_bars

__all__ = [
    "COLOURS",
    "BoxRow",
    "Boxes",
    "Dot",
    "EstimateDot",
    "ExampleRow",
    "Examples",
    "MaskRow",
    "box_errors",
    "box_rows",
    "boxes",
    "confusion",
    "curves",
    "embedding",
    "estimate_scatter",
    "examples",
    "histories",
    "kept_boxes",
    "kept_masks",
    "masks",
    "read_metrics",
    "same_images",
    "save",
    "stream_errors",
    "table_bars",
    "titled",
]


def titled(figure: Figure, title: str) -> Figure:
    """The figure with a line above it, unless it has a title of its own."""
    if not figure.get_suptitle():
        wrapped = "\n".join(wrap(escape.plot(title, None), max(40, int(14 * figure.get_figwidth()))))
        figure.suptitle(wrapped, fontsize=9, x=0.01, ha="left", color=INK["light"][0])
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG in one step. The folder is made."""
    with replacing(path, sync=False) as file:
        figure.savefig(file, format="png", facecolor=figure.get_facecolor())
