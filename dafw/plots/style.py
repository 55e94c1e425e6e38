"""What all figures share: colours, markers, axes and legends."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F", "#4B3F9E", "#A03060")
"""Begins with the colours of Okabe and Ito (2008), which people with any common colour blindness can tell apart."""
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
Theme = Literal["light", "dark"]
INK = {"light": ("#1f2328", "#d0d7de", "#ffffff"), "dark": ("#e6edf3", "#3d444d", "#161b22")}
"""By theme, the colours of text, of lines and of the paper."""


def new_figure(
    width: float, height: float, columns: int = 1, theme: Theme = "light", rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its axes row by row."""
    ink, line, paper = INK[theme]
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=paper, dpi=150)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axis in axes:
        axis.set_facecolor(paper)
        axis.tick_params(colors=ink, labelsize=8)
        axis.xaxis.label.set_color(ink)
        axis.yaxis.label.set_color(ink)
        axis.title.set_color(ink)
        for name, spine in axis.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(line)
    return figure, axes


def legend(axis: Axes, theme: Theme = "light", **options: Any) -> None:
    """Adds a legend to an axis if something on it has a label."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, frameon=False, fontsize=8, labelcolor=INK[theme][0], **options)


def legend_below(figure: Figure, entries: Mapping[str, Any], theme: Theme) -> None:
    """Adds one legend for the whole figure, in as many columns as its width holds.

    Args:
        figure: the figure.
        entries: what stands for each label.
        theme: colours of the page.
    """
    widest = 0.45 + 0.078 * max(map(len, entries))
    columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK[theme][0], "columnspacing": 1.2}
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=columns, **style)


def styles(names: Sequence[Any]) -> dict[Any, tuple[str, str]]:
    """A colour and a marker for each name. There are 40 different pairs, so a grey printer keeps most apart."""
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def shades(count: int, taken: int = 0) -> list[Any]:
    """A colour for each class: those of the palette if it has enough, otherwise evenly from a rainbow.

    Args:
        count: number of classes.
        taken: number of colours of the palette that mean something else.
    """
    if taken + count <= len(COLOURS):
        return list(COLOURS[taken : taken + count])
    return list(colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def are_long(names: Sequence[str]) -> bool:
    """Whether a name has more than four letters."""
    return max(map(len, names), default=0) > 4


def steps_below(axis: Axes) -> None:
    """Labels the axis below with a few whole numbers of steps."""
    axis.set_xlabel("step", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
