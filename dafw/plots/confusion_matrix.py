"""A figure of a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import INK, are_long, new_figure

MOST_CLASSES = 400
"""Classes of a legible confusion matrix: with more, the figure has less than four pixels for a class."""


def confusion(matrix: NDArray[Any], class_names: Sequence[str], *, title: str = "") -> Figure:
    """A confusion matrix: true classes down, predictions across, each row as percent of its true class.

    Args:
        matrix: (K, K) counts, ``matrix[true, predicted]``.
        class_names: K names.
        title: text above.

    Raises:
        ValueError: if the shapes differ.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    k = len(class_names)
    names = [escape.plot(name) for name in class_names]
    if counts.shape != (k, k):
        raise ValueError(f"confusion: a matrix of shape {counts.shape} for {k} classes")
    total = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, total, out=np.zeros_like(counts), where=total > 0)
    side = min(12.0, max(3.6, 1.6 + 0.42 * k))
    figure, (axis,) = new_figure(side + 0.9, side)
    image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    named = k <= 40
    axis.set_xticks(
        range(k) if named else [], names if named else [], rotation=90 if k > 6 or are_long(class_names) else 0
    )
    axis.set_yticks(range(k) if named else [], names if named else [])
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if k <= 20:
        for i, j in np.argwhere(percent >= 0.5):
            dark = "white" if percent[i, j] > 55 else INK["light"][0]
            axis.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", color=dark, fontsize=8)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("% of true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    axis.set_title(escape.plot(title), fontsize=10, loc="left")
    return figure
