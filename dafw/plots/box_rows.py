"""Figures of images with their boxes, and of the errors of detections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import COLOURS, INK, Theme, legend_below, new_figure, shades


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        boxes: (k, 4) as x1, y1, x2, y2 in pixels.
        labels: (k,) classes.
        scores: (k,), which are printed; ``None`` for labelled boxes.
    """

    boxes: NDArray[Any]
    labels: NDArray[Any]
    scores: NDArray[Any] | None = None


@dataclass(frozen=True)
class BoxRow:
    """An image with several sets of boxes.

    Attributes:
        domain: name of its domain.
        image: (h, w, 3) in [0, 1].
        sets: the boxes by the title of their column; ``None`` where nobody knows them.
    """

    domain: str
    image: NDArray[Any]
    sets: Mapping[str, Boxes | None]


def boxes(rows: Sequence[BoxRow], class_names: Sequence[str], *, theme: Theme = "light") -> Figure:
    """A row for each image, a column for each set of its boxes. The legend names the classes that are seen.

    Args:
        rows: one or more, with the same columns.
        class_names: names of the classes.
        theme: colours of the page.

    Raises:
        ValueError: without a row.
    """
    if not rows:
        raise ValueError("boxes: no image to draw")
    colours, titles = shades(len(class_names)), list(rows[0].sets)
    width = 2.5 if len(titles) < 4 else 2.1
    tallest = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    cell = min(width * tallest, 1.5 * width) + 0.06
    figure, axes = new_figure(
        width * len(titles) + 0.3, cell * len(rows) + 0.75, len(titles), theme=theme, rows=len(rows)
    )
    seen: set[int] = set()
    for row, cells in zip(rows, zip(*[iter(axes)] * len(titles), strict=True), strict=True):
        for axis, title in zip(cells, titles, strict=True):
            axis.imshow(row.image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row is rows[0]:
                axis.set_title(escape.plot(title), fontsize=8)
            found = row.sets.get(title)
            if found is None:
                paper = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
                axis.text(0.5, 0.04, "no label", ha="center", transform=axis.transAxes, fontsize=7, bbox=paper)
            else:
                _draw(axis, row.image, found, colours)
                seen |= set(found.labels.astype(int).tolist())
        cells[0].set_ylabel(escape.plot(row.domain), fontsize=8)
    if seen:
        handles = {escape.plot(class_names[i]): Patch(facecolor="none", edgecolor=colours[i]) for i in sorted(seen)}
        legend_below(figure, handles, theme)
    return figure


def _draw(axis: Axes, image: NDArray[Any], found: Boxes, colours: Sequence[Any]) -> None:
    """Boxes with their scores on their upper left corners, the likeliest on top."""
    order = range(len(found.boxes)) if found.scores is None else np.argsort(found.scores, kind="stable")
    for position in order:
        left, top, right, bottom = found.boxes[position] - 0.5  # the first pixel's middle is 0 for matplotlib
        colour = colours[int(found.labels[position])]
        for line, ink in ((2.4, "black"), (1.4, colour)):  # a dark edge tells it from an image of its colour
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ink, lw=line))
        if found.scores is not None:
            paper: dict[str, Any] = {"facecolor": colour, "alpha": 0.85, "linewidth": 0, "pad": 0.6}
            style: dict[str, Any] = {"fontsize": 5.5, "color": _ink_on(colour), "va": "bottom", "bbox": paper}
            place = left, max(top, 0.05 * image.shape[0])
            axis.text(*place, f"{found.scores[position]:.2f}", clip_on=True, **style)
    height, width = image.shape[:2]
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)


def _ink_on(colour: Any) -> str:
    """Black or white, whichever can be read on the colour better."""
    return "black" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55 else "white"


def box_errors(shares: Mapping[str, Mapping[str, float]], *, score: float, theme: Theme = "light") -> Figure:
    """Bars of the errors of each kind, a colour for each domain.

    Args:
        shares: by domain, then by kind of error, how many there are for each labelled box.
        score: detections of higher scores count.
        theme: colours of the page.

    Raises:
        ValueError: without a domain.
    """
    if not shares:
        raise ValueError("box_errors: no domain to draw")
    kinds = list(next(iter(shares.values())))
    figure, (axis,) = new_figure(max(4.6, 0.3 * len(shares) * len(kinds) + 2), 3.2, theme=theme)
    step = 0.8 / len(shares)
    for position, (domain, values) in enumerate(shares.items()):
        places = np.arange(len(kinds)) + (position - (len(shares) - 1) / 2) * step
        heights = [values[kind] for kind in kinds]
        bars = axis.bar(places, heights, 0.92 * step, color=COLOURS[position % len(COLOURS)], label=escape.plot(domain))
        axis.bar_label(bars, fmt="%.2f", fontsize=6, color=INK[theme][0], padding=1)
    axis.set_xticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=8)
    axis.set_ylabel("errors for each labelled box", fontsize=8)
    axis.set_xlabel(f"detections with a score above {score:g}", fontsize=8)
    axis.grid(axis="y", color=INK[theme][1], linewidth=0.5, alpha=0.7)
    axis.set_axisbelow(True)
    legend_below(figure, dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)), theme)
    return figure
