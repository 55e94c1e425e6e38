"""A figure of images with their masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import legend_below, new_figure, shades

_NONE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class MaskRow:
    """An image with two masks.

    Attributes:
        domain: name of its domain.
        image: (h, w, 3) in [0, 1].
        label: (h, w) classes; ``None`` without a label.
        prediction: (h, w) classes.
    """

    domain: str
    image: NDArray[Any]
    label: NDArray[Any] | None
    prediction: NDArray[Any]


def masks(rows: Sequence[MaskRow], class_names: Sequence[str], *, ignored: int) -> Figure:
    """A row for each image: image, label, prediction. The legend names the classes that are seen.

    Args:
        rows: one or more.
        class_names: names of the classes.
        ignored: value of pixels without a label, which are white.

    Raises:
        ValueError: without a row.
    """
    if not rows:
        raise ValueError("masks: no image to draw")
    colours = np.asarray([to_rgb(colour) for colour in shades(len(class_names))])
    tallest = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    cell = min(1.75 * tallest, 2.6) + 0.08
    figure, axes = new_figure(5.4, cell * len(rows) + 0.7, 3, rows=len(rows))
    seen: set[int] = set()
    for row, cells in zip(rows, zip(*[iter(axes)] * 3, strict=True), strict=True):
        shown = [row.image, *(_coloured(mask, colours) for mask in (row.label, row.prediction))]
        for axis, picture, title in zip(cells, shown, ("image", "label", "prediction"), strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(True)
            if picture is None:
                axis.text(0.5, 0.5, "no label", ha="center", va="center", transform=axis.transAxes, fontsize=8)
                axis.set_box_aspect(row.image.shape[0] / row.image.shape[1])
            else:
                axis.imshow(picture, interpolation="nearest")
            if row is rows[0]:
                axis.set_title(title, fontsize=8)
        cells[0].set_ylabel(escape.plot(row.domain), fontsize=8)
        seen |= {int(value) for mask in (row.label, row.prediction) if mask is not None for value in np.unique(mask)}
    handles = {
        escape.plot(class_names[i]): Patch(color=tuple(colours[i])) for i in sorted(seen) if i < len(class_names)
    }
    if ignored in seen:
        handles["no label"] = Patch(facecolor=_NONE, edgecolor="#7F7F7F")
    if handles:
        legend_below(figure, handles, "light")
    return figure


def _coloured(mask: NDArray[Any] | None, colours: NDArray[Any]) -> NDArray[Any] | None:
    """(h, w, 3); white where a value is no class."""
    if mask is None:
        return None
    known = mask < len(colours)
    return np.where(known[..., None], colours[np.where(known, mask, 0)], _NONE)
