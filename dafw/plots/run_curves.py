"""A figure of the values that a run logged."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import INK, legend, new_figure, steps_below, styles

PANELS = {
    "train": (0, "terms of the loss"),
    "oracle": (1, "oracle: what target labels say"),
    "val": (2, "validators"),
    "diagnostics": (3, "diagnostics"),
}
"""Groups of logged names: their order and their titles."""


def read_metrics(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Steps and values of every column of a ``metrics.csv``, without the blanks."""
    series: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            for name, text in line.items():
                if name not in ("step", "epoch", None) and text:
                    series.setdefault(name, []).append((float(line["step"]), float(text)))
    return {name: _columns(pairs) for name, pairs in series.items()}


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    both = np.asarray(sorted(pairs), dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def curves(metrics: Path | Mapping[str, tuple[Any, Any]], *, title: str = "") -> Figure:
    """The values that a run logged over its steps, with a panel for each group.

    The group is the part of a name before the slash.

    Terms of the loss come first. Their axis is logarithmic if they are positive and span more than a factor of 100.
    Scores by target labels are next. Each validator has a panel of its own, since their scales differ.

    Args:
        metrics: a ``metrics.csv``, or ``{name: (steps, values)}``.
        title: text above.

    Raises:
        ValueError: if there is nothing to draw.
    """
    given = read_metrics(metrics) if isinstance(metrics, Path) else metrics
    series = {name: (np.asarray(steps), np.asarray(values)) for name, (steps, values) in given.items()}
    panels: dict[str, list[str]] = {}
    for name in sorted(series, key=lambda name: (PANELS.get(_group(name), (9, ""))[0], _group(name))):
        panels.setdefault(name if _group(name) == "val" else _group(name), []).append(name)
    if not panels:
        raise ValueError("curves: no values to draw")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(4.4 * columns, 3.1 * rows, columns, rows=rows)
    for axis, (panel, names) in zip(axes, panels.items(), strict=False):
        values = np.concatenate([series[name][1] for name in names])
        values = values[np.isfinite(values)]
        if panel == "train" and len(values) and values.min() > 0 and values.max() > 100 * values.min():
            axis.set_yscale("log")
        for name, (colour, marker) in styles(names).items():
            steps, drawn = series[name]
            size = 3.5 if len(steps) <= 30 else 0.0
            axis.plot(
                steps,
                drawn,
                color=colour,
                linewidth=1.4,
                marker=marker,
                markersize=size,
                label=escape.plot(_rest(name)),
            )
        axis.set_title(
            PANELS[panel][1] if panel in PANELS else escape.plot(panel.replace("/", ": ")), fontsize=9, loc="left"
        )
        steps_below(axis)
        axis.grid(color=INK["light"][1], linewidth=0.5, alpha=0.6)
        if len(names) > 1 or panel != names[0]:
            legend(axis, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, columnspacing=1.0, handlelength=1.4)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(escape.plot(title), fontsize=11)
    return figure


def _group(name: str) -> str:
    return name.split("/")[0] if "/" in name else "values"


def _rest(name: str) -> str:
    return name.partition("/")[2] or name
