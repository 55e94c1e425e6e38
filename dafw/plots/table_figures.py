"""Figures of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from dafw import escape
from dafw.plots.style import INK, Theme, legend_below, new_figure, steps_below, styles


@dataclass(frozen=True)
class Dot:
    """One point of :func:`table_bars`: a mean with its standard deviation, in percent."""

    method: str
    task: str
    mean: float
    std: float | None = None
    kind: Literal["method", "control", "published"] = "method"


def table_bars(dots: Sequence[Dot], *, metric: str = "accuracy", theme: Theme = "light") -> Figure:
    """By task and method the mean (dot), its std (whisker), the control (hollow) and the published number (tick).

    Args:
        dots: the numbers. Methods and tasks keep the order in which they appear.
        metric: name of the axis.
        theme: colours of a light or a dark page.

    Raises:
        ValueError: if there are no dots.
    """
    if not dots:
        raise ValueError("table_bars: no numbers to draw")
    tasks = list(dict.fromkeys(dot.task for dot in dots))
    methods = list(dict.fromkeys(dot.method for dot in dots))
    style = styles(methods)
    step = 0.8 / max(len(methods), 1)
    ink, line, paper = INK[theme]
    figure, (axis,) = new_figure(
        max(5.0, min(16.0, 1.6 + len(tasks) * max(0.9, 0.22 * len(methods)))), 3.8, theme=theme
    )
    groups: dict[tuple[str, str], list[Dot]] = {}
    for dot in dots:
        groups.setdefault((dot.method, dot.kind), []).append(dot)
    for (method, kind), held in groups.items():
        colour, marker = style[method]
        shift = (methods.index(method) - (len(methods) - 1) / 2) * step
        if kind != "published":
            shift += step * 0.22 * (-1 if kind == "method" else 1)
        x, means = [tasks.index(dot.task) + shift for dot in held], [dot.mean for dot in held]
        if kind == "published":
            half = 0.42 * step
            axis.hlines(means, [at - half for at in x], [at + half for at in x], color=colour, linewidth=1.8, zorder=4)
            continue
        face = colour if kind == "method" else paper
        spread = [np.nan if dot.std is None else dot.std for dot in held]
        axis.errorbar(
            x, means, yerr=spread, fmt=marker, color=colour, markerfacecolor=face, markersize=6,
            elinewidth=1.1, capsize=2, zorder=3 if kind == "method" else 2, linestyle="none",
        )  # fmt: skip
    for edge in range(1, len(tasks)):
        axis.axvline(edge - 0.5, color=line, linewidth=0.6)
    for name in methods:
        colour, marker = style[name]
        axis.plot([], [], marker, color=colour, markersize=6, label=escape.plot(name))
    kinds = {dot.kind for dot in dots}
    if "control" in kinds:
        axis.plot([], [], "o", color=ink, markerfacecolor=paper, markersize=6, label="hollow: control")
    if "published" in kinds:
        axis.plot([], [], "_", color=ink, markersize=10, markeredgewidth=1.6, label="tick: published")
    crowded = len(tasks) > 6 or sum(map(len, tasks)) > 14 * figure.get_figwidth()
    axis.set_xticks(
        range(len(tasks)),
        [_arrow(task) for task in tasks],
        rotation=30 if crowded else 0,
        ha="right" if crowded else "center",
    )
    axis.set_xlim(-0.5, len(tasks) - 0.5)
    axis.set_ylabel(escape.plot(f"target test {metric.replace('_', ' ')}, %"), fontsize=8)
    axis.grid(axis="y", color=line, linewidth=0.5, alpha=0.7)
    axis.set_axisbelow(True)
    legend_below(figure, dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)), theme)
    return figure


def histories(
    series: Mapping[str, Mapping[str, tuple[Any, Any, Any]]],
    *,
    metric: str = "accuracy",
    theme: Theme = "light",
    controls: Mapping[str, str] | None = None,
) -> Figure:
    """The test metric over training: a panel for each task, a line for each method with a band of one std over seeds.

    It shows whether training had settled, and how much the choice of a checkpoint matters. Nothing is selected by it.

    Args:
        series: ``{task: {row: (steps, means, stds)}}``, in percent. Stds may be zero.
        metric: name of the axis.
        theme: colours of a light or a dark page.
        controls: by row that is a control, its method. It has the colour of the method, and is dashed.

    Raises:
        ValueError: if there are no series.
    """
    tasks = [task for task in series if series[task]]
    if not tasks:
        raise ValueError("histories: no series to draw")
    own = controls or {}
    style = styles(list(dict.fromkeys(own.get(row, row) for task in tasks for row in series[task])))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    _, line, _ = INK[theme]
    figure, axes = new_figure(max(5.0, 3.9 * columns), 2.7 * rows + 0.5, columns, theme, rows)
    for axis, task in zip(axes, tasks, strict=False):
        for row, (steps, means, stds) in series[task].items():
            colour, marker = style[own.get(row, row)]
            x, y, spread = (np.asarray(part, dtype=np.float64) for part in (steps, means, stds))
            dashes = "--" if row in own else "-"
            axis.plot(x, y, dashes, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=escape.plot(row))
            axis.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(_arrow(task), fontsize=9, loc="left", color=INK[theme][0])
        steps_below(axis)
        axis.set_xticks(sorted({step for curve in series[task].values() for step in curve[0]}), minor=True)
        axis.tick_params(axis="x", which="minor", color=INK[theme][0], length=4)
        axis.grid(color=line, linewidth=0.5, alpha=0.6)
    axes[0].set_ylabel(escape.plot(f"target test {metric.replace('_', ' ')}, %"), fontsize=8)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    legend_below(figure, entries, theme)
    return figure


def _arrow(task: str) -> str:
    return escape.plot(task.replace("->", " → "))
