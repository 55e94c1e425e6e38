"""Estimated accuracy against the accuracy that target labels give."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from dafw import escape
from dafw.plots.style import INK, Theme, legend_below, new_figure, styles


@dataclass(frozen=True)
class EstimateDot:
    """One point of :func:`estimate_scatter`, in percent.

    Attributes:
        estimator: a panel of its own.
        method: colour and marker.
        truth: the accuracy by the target's labels.
        value: the estimate.
        low: the lower end of its range.
        high: the upper end of its range.
    """

    estimator: str
    method: str
    truth: float
    value: float
    low: float
    high: float


def estimate_scatter(dots: Sequence[EstimateDot], *, theme: Theme = "light") -> Figure:
    """A panel for each estimator: the estimate with its range over the true accuracy. On the line both are equal.

    Args:
        dots: the numbers. Estimators and methods keep the order in which they appear. Those that are nan are left out.
        theme: colours of a light or a dark page.

    Raises:
        ValueError: if there is nothing to draw.
    """
    drawn = [dot for dot in dots if np.isfinite((dot.truth, dot.value, dot.low, dot.high)).all()]
    if not drawn:
        raise ValueError("estimate_scatter: no numbers to draw")
    panels, methods = (
        list(dict.fromkeys(names)) for names in zip(*((d.estimator, d.method) for d in drawn), strict=True)
    )
    style, (ink, line, _) = styles(methods), INK[theme]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(max(3.6, 2.6 * columns), 2.7 * rows + 0.4, columns, theme, rows)
    ends = [end for dot in drawn for end in (dot.truth, dot.low, dot.high)]
    low, high = max(0.0, min(ends) - 3), min(100.0, max(ends) + 3)
    for axis, panel in zip(axes, panels, strict=False):
        axis.plot([low, high], [low, high], color=line, linewidth=1, zorder=1)
        for method in methods:
            held = [dot for dot in drawn if (dot.estimator, dot.method) == (panel, method)]
            if not held:
                continue
            colour, marker = style[method]
            values = np.asarray([[dot.value - dot.low, dot.high - dot.value] for dot in held]).clip(0).T
            axis.errorbar(
                [dot.truth for dot in held], [dot.value for dot in held], yerr=values, fmt=marker, color=colour,
                markersize=4.5, elinewidth=0.9, alpha=0.85, linestyle="none", label=escape.plot(method),
            )  # fmt: skip
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
        axis.set_title(escape.plot(panel), fontsize=8, loc="left", color=ink)
        axis.set_xlabel("true accuracy, %", fontsize=8)
        axis.grid(color=line, linewidth=0.5, alpha=0.5)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("estimated accuracy, %", fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    legend_below(figure, entries, theme)
    return figure
