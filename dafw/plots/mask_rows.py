"""A figure of images with their masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import INK, Theme, legend_below, new_figure, shades

_NONE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class MaskRow:
    """An image with several masks.

    Attributes:
        domain: name of its domain.
        image: (h, w, 3) in [0, 1].
        sets: masks (h, w) of classes by the title of their column; ``None`` where nobody knows the classes.
    """

    domain: str
    image: NDArray[Any]
    sets: Mapping[str, NDArray[Any] | None]


def masks(rows: Sequence[MaskRow], class_names: Sequence[str], *, ignored: int, theme: Theme = "light") -> Figure:
    """A row for each image, with a column for each of its masks. The legend names the classes that are seen.

    Args:
        rows: one or more, with the same columns.
        class_names: names of the classes.
        ignored: value of pixels without a label, which are white.
        theme: colours of the page.

    Raises:
        ValueError: without a row.
    """
    if not rows:
        raise ValueError("masks: no image to draw")
    colours = np.asarray([to_rgb(colour) for colour in shades(len(class_names))])
    tallest = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    cell = min(1.75 * tallest, 2.6) + 0.08
    titles = list(rows[0].sets)
    columns = 1 + len(titles)
    figure, axes = new_figure(1.8 * columns, cell * len(rows) + 0.7, columns, theme, len(rows))
    seen: set[int] = set()
    for row, cells in zip(rows, zip(*[iter(axes)] * columns, strict=True), strict=True):
        shown = [row.image, *(_coloured(row.sets[title], colours) for title in titles)]
        for axis, picture, title in zip(cells, shown, ["image", *titles], strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(True)
            if picture is None:
                said = {"ha": "center", "va": "center", "fontsize": 8, "color": INK[theme][0]}
                axis.text(0.5, 0.5, "no label", transform=axis.transAxes, **said)
                axis.set_box_aspect(row.image.shape[0] / row.image.shape[1])
            else:
                axis.imshow(picture, interpolation="nearest")
            if row is rows[0]:
                axis.set_title(escape.plot(title), fontsize=8)
        cells[0].set_ylabel(escape.plot(row.domain), fontsize=8)
        seen |= {int(value) for mask in row.sets.values() if mask is not None for value in np.unique(mask)}
    handles = {
        escape.plot(class_names[i]): Patch(color=tuple(colours[i])) for i in sorted(seen) if i < len(class_names)
    }
    if ignored in seen:
        handles["no label"] = Patch(facecolor=_NONE, edgecolor="#7F7F7F")
    if handles:
        legend_below(figure, handles, theme)
    return figure


def _coloured(mask: NDArray[Any] | None, colours: NDArray[Any]) -> NDArray[Any] | None:
    """(h, w, 3); white where a value is no class."""
    if mask is None:
        return None
    known = mask < len(colours)
    return np.where(known[..., None], colours[np.where(known, mask, 0)], _NONE)
