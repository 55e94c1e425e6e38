"""A figure of images that stand for the groups of a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import COLOURS, legend_below, new_figure


@dataclass(frozen=True)
class ExampleRow:
    """Images that stand for one group of a class.

    Attributes:
        name: name of the group.
        count: number of samples of the class in the group.
        images: (m, h, w, 3) in [0, 1].
        domains: the m names of their domains.
    """

    name: str
    count: int
    images: NDArray[Any]
    domains: Sequence[str]


@dataclass(frozen=True)
class Examples:
    """A class with rows of images.

    Attributes:
        name: of the class.
        samples: number of its samples.
        groups: number of groups that they are in.
        rows: the groups that are shown.
    """

    name: str
    samples: int
    groups: int
    rows: Sequence[ExampleRow]


def examples(panels: Sequence[Examples], domains: Sequence[str], *, what: str = "groups", title: str = "") -> Figure:
    """A panel for each class: a row of images for each group, with its name and how many samples it has.

    If there are several domains, each image has a frame in the colour of its domain.

    Args:
        panels: one or more. All images have one size.
        domains: names, in the order of their colours.
        what: word for the groups.
        title: text above.

    Raises:
        ValueError: if there is no image to draw.
    """
    images = [row.images for panel in panels for row in panel.rows]
    if not sum(map(len, images)):
        raise ValueError("examples: no image to draw")
    height, width = images[0].shape[1:3]
    lines, each = max(len(panel.rows) for panel in panels), max(map(len, images))
    frames = {name: np.asarray(to_rgb(COLOURS[i % len(COLOURS)])) for i, name in enumerate(domains)}
    edge = max(1, round(max(height, width) / 14))
    down, right = height + 3 * edge, width + 3 * edge
    columns = min(3, len(panels))
    size = 0.36 * each + 0.8, 0.36 * lines * down / right + 0.5
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(columns * size[0], rows * size[1] + 0.4, columns, rows=rows)
    for axis, panel in zip(axes, panels, strict=False):
        mosaic = np.ones((lines * down, each * right, 3))
        for i, row in enumerate(panel.rows):
            for j, (image, name) in enumerate(zip(row.images, row.domains, strict=True)):
                y, x = i * down, j * right
                if len(domains) > 1:
                    mosaic[y : y + height + 2 * edge, x : x + width + 2 * edge] = frames[name]
                mosaic[y + edge : y + edge + height, x + edge : x + edge + width] = image
        axis.imshow(mosaic)
        places = [i * down + height / 2 + edge for i in range(len(panel.rows))]
        axis.set_yticks(places, [f"{escape.plot(row.name)}\nn = {row.count}" for row in panel.rows], fontsize=6)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(
            escape.plot(f"{panel.name}: {panel.samples} samples in {panel.groups} {what}"), fontsize=8, loc="left"
        )
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if len(domains) > 1:
        legend_below(figure, {escape.plot(name): Patch(color=tuple(frames[name])) for name in domains}, "light")
    if title:
        figure.suptitle(escape.plot(title), fontsize=11)
    return figure
