"""A figure of the error along a stream, with its shifts."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dafw import escape
from dafw.plots.style import COLOURS, INK, legend, new_figure

MOST_LABELS = 24
"""Greatest number of segments whose names are written."""
CURVES = {"error": ("served", COLOURS[1], 1.8), "start_error": ("start model", COLOURS[0], 1.2)}


def stream_errors(
    bins: Mapping[str, Sequence[float]], segments: Sequence[tuple[str, int]], samples: int, *, title: str = ""
) -> Figure:
    """The error in equal parts of a stream.

    Vertical lines mark the shifts. The names of the segments stand above; of more than :data:`MOST_LABELS` segments
    every k-th is named.

    Args:
        bins: ``error`` of what was served and ``start_error`` of the start model, as fractions, first part to last.
        segments: domain and position of the first sample of each segment.
        samples: number of samples of the stream.
        title: text above.

    Raises:
        ValueError: if no part of the stream has an error.
    """
    curves = {name: np.asarray(values, dtype=np.float64) for name, values in bins.items()}
    if not any(np.isfinite(values).any() for values in curves.values()):
        raise ValueError("stream_errors: no errors to draw")
    figure, (axis,) = new_figure(9, 3.6)
    ink, line, _ = INK["light"]
    for name, values in curves.items():
        label, colour, width = CURVES[name]
        edges = np.linspace(0, samples, len(values) + 1)
        axis.stairs(100 * values, edges, color=colour, linewidth=width, label=label, baseline=None)
    ends = [*(position for _, position in segments[1:]), samples]
    share = -(-len(segments) // MOST_LABELS)
    for number, ((domain, position), end) in enumerate(zip(segments, ends, strict=True)):
        if number:
            axis.axvline(position, color=line, linewidth=0.8, linestyle="--", zorder=0)
        if number % share == 0:
            axis.text(
                (position + end) / 2,
                1.02,
                escape.plot(domain, 24),
                transform=axis.get_xaxis_transform(),
                rotation=40,
                rotation_mode="anchor",
                ha="left",
                va="bottom",
                fontsize=7,
                color=ink,
            )
    axis.set_xlim(0, samples)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("samples of the stream so far", fontsize=8)
    axis.set_ylabel("error in %", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend(axis, loc="best")
    if title:
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", color=ink)
    return figure
