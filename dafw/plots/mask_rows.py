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
    """An image with its masks.

    Attributes:
        domain: name of its domain.
        image: (h, w, 3) in [0, 1].
        label: (h, w) classes; ``None`` without a label.
        prediction: (h, w) classes.
        earlier: (h, w) classes that an earlier model predicted; ``None`` if there is no such model.
    """

    domain: str
    image: NDArray[Any]
    label: NDArray[Any] | None
    prediction: NDArray[Any]
    earlier: NDArray[Any] | None = None

    @property
    def masks(self) -> list[NDArray[Any] | None]:
        """Label, earlier prediction if there is one, and prediction."""
        return [self.label, *([] if self.earlier is None else [self.earlier]), self.prediction]


def masks(rows: Sequence[MaskRow], class_names: Sequence[str], *, ignored: int, earlier: str = "") -> Figure:
    """A row for each image: image, label, predictions. The legend names the classes that are seen.

    Args:
        rows: one or more.
        class_names: names of the classes.
        ignored: value of pixels without a label, which are white.
        earlier: what the earlier model is called, if the rows have its predictions: all of them, or none.

    Raises:
        ValueError: without a row.
    """
    if not rows:
        raise ValueError("masks: no image to draw")
    colours = np.asarray([to_rgb(colour) for colour in shades(len(class_names))])
    tallest = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    cell = min(1.75 * tallest, 2.6) + 0.08
    titles = ["image", "label", *([] if rows[0].earlier is None else [escape.plot(earlier)]), "prediction"]
    figure, axes = new_figure(1.8 * len(titles), cell * len(rows) + 0.7, len(titles), rows=len(rows))
    seen: set[int] = set()
    for row, cells in zip(rows, zip(*[iter(axes)] * len(titles), strict=True), strict=True):
        shown = [row.image, *(_coloured(mask, colours) for mask in row.masks)]
        for axis, picture, title in zip(cells, shown, titles, strict=True):
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
        seen |= {int(value) for mask in row.masks if mask is not None for value in np.unique(mask)}
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
