"""A figure of images with their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import legend_below, new_figure, shades

Boxes = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class BoxRow:
    """An image with two sets of boxes, each (k, 4) as x1, y1, x2, y2 in pixels and (k,) classes.

    Attributes:
        domain: name of its domain.
        image: (h, w, 3) in [0, 1].
        label: the labelled boxes; ``None`` without a label.
        prediction: the predicted boxes.
    """

    domain: str
    image: NDArray[Any]
    label: Boxes | None
    prediction: Boxes


def boxes(rows: Sequence[BoxRow], class_names: Sequence[str]) -> Figure:
    """A row for each image: its labels and its predictions. The legend names the classes that are seen.

    Args:
        rows: one or more.
        class_names: names of the classes.

    Raises:
        ValueError: without a row.
    """
    if not rows:
        raise ValueError("boxes: no image to draw")
    colours = shades(len(class_names))
    figure, axes = new_figure(4.4, 2.1 * len(rows) + 0.5, 2, rows=len(rows))
    seen: set[int] = set()
    for row, cells in zip(rows, zip(*[iter(axes)] * 2, strict=True), strict=True):
        for axis, found, title in zip(cells, (row.label, row.prediction), ("label", "prediction"), strict=True):
            axis.imshow(row.image)
            axis.set_xticks([])
            axis.set_yticks([])
            for (left, top, right, bottom), label in zip(*found, strict=True) if found is not None else ():
                place = (left - 0.5, top - 0.5), right - left, bottom - top
                axis.add_patch(Rectangle(*place, fill=False, edgecolor=colours[int(label)], linewidth=1.5))
                seen.add(int(label))
            if row is rows[0]:
                axis.set_title(title, fontsize=8)
            if found is None:
                axis.set_xlabel("no label", fontsize=8)
        cells[0].set_ylabel(escape.plot(row.domain), fontsize=8)
    if seen:
        handles = {escape.plot(class_names[i]): Patch(facecolor="none", edgecolor=colours[i]) for i in sorted(seen)}
        legend_below(figure, handles, "light")
    return figure
