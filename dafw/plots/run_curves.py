"""A figure of the values that a run logged."""

import csv
import re
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
    "rate": (3, "learning rate"),
    "diagnostics": (4, "diagnostics"),
}
"""Groups of logged names: their order and their titles."""
ALIKE = ("gradient_ratio_", "gradient_norm_", "weight_", "critic_accuracy", "similarity_accuracy", "transferability_")
"""How the names of diagnostics begin that are on one scale, and share a panel. Any other has one of its own."""
MOST = 8
"""Curves of a panel: there are as many markers."""
DASHES = ("-", "--", ":", "-.")
"""Curves of a panel have these in turn, so that one shows where it lies below another."""


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

    Terms of the loss come first. Their axis, and that of gradients, is logarithmic if they are positive and span more
    than a factor of 100. Scores by target labels are next. Each validator has a panel of its own, since their scales
    differ. So has each diagnostic that is not of a kind with others (:data:`ALIKE`). Curves that are equal are drawn as
    one. More curves than :data:`MOST` go on in a further panel.

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
        panels.setdefault(_panel(name), []).append(name)
    panels = {
        panel if not start else f"{panel} ({start // MOST + 1})": names[start : start + MOST]
        for panel, names in panels.items()
        for start in range(0, len(names), MOST)
    }
    if not panels:
        raise ValueError("curves: no values to draw")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(4.4 * columns, 3.1 * rows, columns, rows=rows)
    for axis, (panel, names) in zip(axes, panels.items(), strict=False):
        values = np.concatenate([series[name][1] for name in names])
        values = values[np.isfinite(values)]
        far = len(values) and values.min() > 0 and values.max() > 100 * values.min()
        if far and panel.startswith(("train", "diagnostics/gradient_")):
            axis.set_yscale("log")
        else:
            axis.ticklabel_format(axis="y", useOffset=False)
        equal: dict[bytes, list[str]] = {}
        for name in names:
            equal.setdefault(b"".join(part.astype(np.float64).tobytes() for part in series[name]), []).append(name)
        look = styles([same[0] for same in equal.values()])
        for number, same in enumerate(equal.values()):
            (colour, marker), (steps, drawn) = look[same[0]], series[same[0]]
            size = 3.5 if len(steps) <= 30 else 0.0
            axis.plot(
                steps,
                drawn,
                color=colour,
                linewidth=1.4,
                linestyle=DASHES[number % len(DASHES)],
                marker=marker,
                markersize=size,
                label=escape.plot(" = ".join(map(_rest, same))),
            )
        axis.set_title(escape.plot(_title(panel)), fontsize=9, loc="left")
        steps_below(axis)
        axis.grid(color=INK["light"][1], linewidth=0.5, alpha=0.6)
        if len(names) > 1 or panel != names[0]:
            legend(axis, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, columnspacing=1.0, handlelength=1.4)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(escape.plot(title), fontsize=11)
    return figure


def _panel(name: str) -> str:
    """The panel of a value: that of its group, of its kind among the diagnostics, or its own."""
    group, rest = _group(name), _rest(name)
    if group == "val":
        return name
    if group != "diagnostics":
        return group
    alike = next((start for start in ALIKE if rest.startswith(start)), rest)
    return f"diagnostics/{alike.rstrip('_')}"


def _title(panel: str) -> str:
    """A panel's title: in words for a group, else what its curves are."""
    name, further = re.match(r"(.*?)( \(\d+\))?$", panel, re.DOTALL).groups("")  # type: ignore[union-attr]
    group, _, rest = name.partition("/")
    if group == "diagnostics":
        return f"diagnostics: {rest.replace('_', ' ')}{further}" if rest else panel
    return f"{PANELS[name][1] if name in PANELS else name.replace('/', ': ')}{further}"


def _group(name: str) -> str:
    return name.split("/")[0] if "/" in name else "values"


def _rest(name: str) -> str:
    return name.partition("/")[2] or name
