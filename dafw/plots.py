"""Plots: arrays in, a matplotlib figure out. The caller saves it; nothing here opens a window or imports torch.

Colours begin with those of Okabe and Ito (2008), which people with any common colour blindness can tell apart; domains
and methods also differ by marker, so the plots survive a grey printer.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F", "#4B3F9E", "#A03060")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
Theme = Literal["light", "dark"]
INK = {"light": ("#1f2328", "#d0d7de", "#ffffff"), "dark": ("#e6edf3", "#3d444d", "#161b22")}

#: Groups of logged names: their order and their titles.
PANELS = {
    "train": (0, "terms of the loss"),
    "oracle": (1, "oracle: what target labels say"),
    "val": (2, "validators"),
    "diagnostics": (3, "diagnostics"),
}


@dataclass(frozen=True)
class Dot:
    """One point of :func:`table_bars`: a mean with its standard deviation, in percent."""

    method: str
    task: str
    mean: float
    std: float | None = None
    kind: Literal["method", "control", "published"] = "method"


def _figure(
    width: float, height: float, columns: int = 1, theme: Theme = "light", rows: int = 1
) -> tuple[Figure, list[Axes]]:
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


def _legend(axis: Axes, theme: Theme = "light", **options: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, frameon=False, fontsize=8, labelcolor=INK[theme][0], **options)


def _legend_below(figure: Figure, entries: Mapping[str, Any], theme: Theme) -> None:
    """One legend for the whole figure, in as many columns as its width holds."""
    widest = 0.45 + 0.078 * max(map(len, entries))
    columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK[theme][0], "columnspacing": 1.2}
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=columns, **look)


def _styles(names: Sequence[Any]) -> dict[Any, tuple[str, str]]:
    """A colour and a marker for each name; 40 pairs before one comes again."""
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _shades(count: int) -> list[Any]:
    """A colour for each class: the palette while it lasts, else evenly from a rainbow."""
    return list(COLOURS[:count]) if count <= len(COLOURS) else list(colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def embedding(
    features: NDArray[Any],
    domains: Sequence[str],
    classes: Sequence[Any],
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
    limit: int = 1000,
    seed: int = 0,
) -> Figure:
    """t-SNE of the features, coloured by domain on the left and by class on the right.

    Features are reduced to at most 50 principal components before t-SNE (van der Maaten and Hinton, 2008).

    Args:
        features: (N, d), finite.
        domains: N domain names.
        classes: N class indices, labels or predictions.
        class_names: names by class index.
        title: goes above both.
        limit: how many samples are drawn at most, chosen by ``seed``.
        seed: of the choice and of t-SNE.

    Raises:
        ValueError: if there are fewer than 4 samples, or lengths differ.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = np.asarray(features, dtype=np.float64)
    if points.ndim != 2 or len(points) < 4 or not len(points) == len(domains) == len(classes):
        raise ValueError(
            f"embedding: {points.shape} features, {len(domains)} domains, {len(classes)} classes do not fit"
        )
    kept = np.random.default_rng(seed).permutation(len(points))[:limit]
    points, domain, label = points[kept], np.asarray(domains)[kept], np.asarray(classes)[kept]
    if min(points.shape) > 50:
        points = PCA(50, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)

    figure, (left, right) = _figure(10, 4.8, columns=2)
    order = list(dict.fromkeys(domains))
    looks = _styles(order)
    for name in order:
        colour, marker = looks[name]
        x, y = places[domain == name].T
        left.scatter(x, y, s=12, c=colour, marker=marker, alpha=0.65, linewidths=0, label=name)
    left.set_title("by domain", fontsize=10, loc="left")
    _legend(left, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=4, markerscale=1.8, handletextpad=0.2)
    names = sorted(set(label.tolist()))
    for name, shade in zip(names, _shades(len(names)), strict=True):
        for where in order:
            x, y = places[(label == name) & (domain == where)].T
            right.scatter(x, y, s=12, color=shade, marker=looks[where][1], alpha=0.65, linewidths=0)
        said = str(class_names[int(name)]) if class_names is not None else str(name)
        right.scatter([], [], s=12, color=shade, marker="o", label=said)
    right.set_title("by class", fontsize=10, loc="left")
    if len(names) <= 24:
        columns = 10 if len(names) <= 10 and not _long([str(name) for name in class_names or names]) else 4
        _legend(
            right,
            loc="upper left",
            bbox_to_anchor=(0, -0.01),
            ncols=columns,
            markerscale=1.8,
            handletextpad=0.1,
            columnspacing=0.9,
        )
    for axis in (left, right):
        axis.set_xticks([])
        axis.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def confusion(matrix: NDArray[Any], class_names: Sequence[str], *, title: str = "") -> Figure:
    """A confusion matrix: true classes down, predictions across, each row as percent of its true class.

    Args:
        matrix: (K, K) counts, ``matrix[true, predicted]``.
        class_names: K names.
        title: goes above.

    Raises:
        ValueError: if the shapes differ.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    k = len(class_names)
    if counts.shape != (k, k):
        raise ValueError(f"confusion: a matrix of shape {counts.shape} for {k} classes")
    total = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, total, out=np.zeros_like(counts), where=total > 0)
    side = min(12.0, max(3.6, 1.6 + 0.42 * k))
    figure, (axis,) = _figure(side + 0.9, side)
    image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    named = k <= 40
    axis.set_xticks(
        range(k) if named else [], class_names if named else [], rotation=90 if k > 6 or _long(class_names) else 0
    )
    axis.set_yticks(range(k) if named else [], class_names if named else [])
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if k <= 20:
        for i, j in np.argwhere(percent >= 0.5):
            dark = "white" if percent[i, j] > 55 else INK["light"][0]
            axis.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", color=dark, fontsize=8)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("% of true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    axis.set_title(title, fontsize=10, loc="left")
    return figure


def _long(names: Sequence[str]) -> bool:
    return max(map(len, names), default=0) > 4


@dataclass(frozen=True)
class ExampleRow:
    """Images that stand for one group of a class.

    Attributes:
        name: of the group.
        count: samples of the class that are in it.
        images: (m, h, w, 3) in [0, 1].
        domains: m names.
    """

    name: str
    count: int
    images: NDArray[Any]
    domains: Sequence[str]


@dataclass(frozen=True)
class Examples:
    """A class with rows of images; ``groups`` is how many groups its ``samples`` are in, of which some are shown."""

    name: str
    samples: int
    groups: int
    rows: Sequence[ExampleRow]


def examples(panels: Sequence[Examples], domains: Sequence[str], *, what: str = "groups", title: str = "") -> Figure:
    """A panel for each class: a row of images for each group, with its name and how many samples it has.

    Where there are several domains, each image has a frame in its domain's colour.

    Args:
        panels: one or more; all images of one size.
        domains: names, in the order of their colours.
        what: what the groups are called.
        title: goes above.

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
    figure, axes = _figure(columns * size[0], rows * size[1] + 0.4, columns, rows=rows)
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
        axis.set_yticks(places, [f"{row.name}\nn = {row.count}" for row in panel.rows], fontsize=6)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(f"{panel.name}: {panel.samples} samples in {panel.groups} {what}", fontsize=8, loc="left")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if len(domains) > 1:
        _legend_below(figure, {name: Patch(color=tuple(frames[name])) for name in domains}, "light")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def read_metrics(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Steps and values of every column of a ``metrics.csv``; blanks are left out."""
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
    """What a run logged over its steps, a panel for each group of names (the part before the slash).

    Terms of the loss come first (on a logarithmic axis if they are positive and span more than a factor of 100),
    then what target labels say, then a panel for each validator, since their scales differ.

    Args:
        metrics: a ``metrics.csv``, or ``{name: (steps, values)}``.
        title: goes above.

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
    figure, axes = _figure(4.4 * columns, 3.1 * rows, columns, rows=rows)
    for axis, (panel, names) in zip(axes, panels.items(), strict=False):
        values = np.concatenate([series[name][1] for name in names])
        values = values[np.isfinite(values)]
        if panel == "train" and len(values) and values.min() > 0 and values.max() > 100 * values.min():
            axis.set_yscale("log")
        for name, (colour, marker) in _styles(names).items():
            steps, drawn = series[name]
            size = 3.5 if len(steps) <= 30 else 0.0
            axis.plot(steps, drawn, color=colour, linewidth=1.4, marker=marker, markersize=size, label=_rest(name))
        axis.set_title(PANELS[panel][1] if panel in PANELS else panel.replace("/", ": "), fontsize=9, loc="left")
        _steps(axis)
        axis.grid(color=INK["light"][1], linewidth=0.5, alpha=0.6)
        if len(names) > 1 or panel != names[0]:
            _legend(axis, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, columnspacing=1.0, handlelength=1.4)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _group(name: str) -> str:
    return name.split("/")[0] if "/" in name else "values"


def _rest(name: str) -> str:
    return name.partition("/")[2] or name


def _steps(axis: Axes) -> None:
    axis.set_xlabel("step", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def table_bars(dots: Sequence[Dot], *, metric: str = "accuracy", theme: Theme = "light") -> Figure:
    """A table as a picture: by task and method the mean (dot), std (whisker), control (hollow), published (tick).

    Args:
        dots: the numbers; methods and tasks are drawn in order of appearance.
        metric: what the axis is called.
        theme: colours for a light or a dark page.

    Raises:
        ValueError: if there are no dots.
    """
    if not dots:
        raise ValueError("table_bars: no numbers to draw")
    tasks = list(dict.fromkeys(dot.task for dot in dots))
    methods = list(dict.fromkeys(dot.method for dot in dots))
    looks = _styles(methods)
    step = 0.8 / max(len(methods), 1)
    ink, line, paper = INK[theme]
    figure, (axis,) = _figure(max(5.0, min(16.0, 1.6 + len(tasks) * max(0.9, 0.22 * len(methods)))), 3.8, theme=theme)
    for dot in dots:
        colour, marker = looks[dot.method]
        x = tasks.index(dot.task) + (methods.index(dot.method) - (len(methods) - 1) / 2) * step
        if dot.kind == "published":
            half = 0.42 * step
            axis.hlines(dot.mean, x - half, x + half, color=colour, linewidth=1.8, zorder=4)
            continue
        shift = step * 0.22 * (-1 if dot.kind == "method" else 1)
        face = colour if dot.kind == "method" else paper
        axis.errorbar(
            x + shift, dot.mean, yerr=dot.std, fmt=marker, color=colour, markerfacecolor=face, markersize=6,
            elinewidth=1.1, capsize=2, zorder=3 if dot.kind == "method" else 2,
        )  # fmt: skip
    for edge in range(1, len(tasks)):
        axis.axvline(edge - 0.5, color=line, linewidth=0.6)
    for name in methods:
        colour, marker = looks[name]
        axis.plot([], [], marker, color=colour, markersize=6, label=name)
    kinds = {dot.kind for dot in dots}
    if "control" in kinds:
        axis.plot([], [], "o", color=ink, markerfacecolor=paper, markersize=6, label="hollow: control")
    if "published" in kinds:
        axis.plot([], [], "_", color=ink, markersize=10, markeredgewidth=1.6, label="tick: published")
    crowded = len(tasks) > 6 or sum(map(len, tasks)) > 14 * figure.get_figwidth()
    axis.set_xticks(
        range(len(tasks)),
        [task.replace("->", " → ") for task in tasks],
        rotation=30 if crowded else 0,
        ha="right" if crowded else "center",
    )
    axis.set_xlim(-0.5, len(tasks) - 0.5)
    axis.set_ylabel(f"target test {metric.replace('_', ' ')}, %", fontsize=8)
    axis.grid(axis="y", color=line, linewidth=0.5, alpha=0.7)
    axis.set_axisbelow(True)
    _legend_below(figure, dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)), theme)
    return figure


def histories(
    series: Mapping[str, Mapping[str, tuple[Any, Any, Any]]], *, metric: str = "accuracy", theme: Theme = "light"
) -> Figure:
    """The test metric over training: a panel for each task, a line for each method with a band of one std over seeds.

    It shows whether training had settled and how much the choice of a checkpoint matters; nothing is selected by it.

    Args:
        series: ``{task: {method: (steps, means, stds)}}``, in percent; stds may be zero.
        metric: what the axis is called.
        theme: colours for a light or a dark page.

    Raises:
        ValueError: if there are no series.
    """
    tasks = [task for task in series if series[task]]
    if not tasks:
        raise ValueError("histories: no series to draw")
    methods = list(dict.fromkeys(method for task in tasks for method in series[task]))
    looks = _styles(methods)
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    _, line, _ = INK[theme]
    figure, axes = _figure(max(5.0, 3.9 * columns), 2.7 * rows + 0.5, columns, theme, rows)
    for axis, task in zip(axes, tasks, strict=False):
        for method, (steps, means, stds) in series[task].items():
            colour, marker = looks[method]
            x, y, spread = (np.asarray(part, dtype=np.float64) for part in (steps, means, stds))
            axis.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=method)
            axis.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(task.replace("->", " → "), fontsize=9, loc="left", color=INK[theme][0])
        _steps(axis)
        axis.grid(color=line, linewidth=0.5, alpha=0.6)
    axes[0].set_ylabel(f"target test {metric.replace('_', ' ')}, %", fontsize=8)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    _legend_below(figure, entries, theme)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=figure.get_facecolor())
