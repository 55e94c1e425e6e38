"""A figure of features in two dimensions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dafw import escape
from dafw.plots.style import are_long, legend, new_figure, shades, styles

ROUNDING = 1e-6
"""Features that differ by less, relative to the largest one, are equal."""
ITERATIONS = 500
"""Of t-SNE. With a few hundred samples the picture looks the same after twice as many."""


def embedding(
    features: NDArray[Any],
    domains: Sequence[str],
    classes: Sequence[Any],
    *,
    class_names: Sequence[str] | None = None,
    by: str = "class",
    title: str = "",
    limit: int = 300,
    seed: int = 0,
) -> Figure:
    """The features in two dimensions, coloured by domain on the left and by class on the right, see :func:`t_sne`.

    A domain has one marker in both. No class has the colour of a domain.

    Args:
        features: (N, d), finite.
        domains: N domain names.
        classes: N class indices, labels or predictions.
        class_names: names by class index.
        by: what the classes are, for the title on the right.
        title: text above both.
        limit: number of samples to draw at most. ``seed`` chooses them. 300 take t-SNE a fraction of a second.
        seed: seed of the choice and of t-SNE.

    Raises:
        ValueError: if there are fewer than 4 samples, if lengths differ, or if a feature is not finite.
    """
    points = np.asarray(features, dtype=np.float64)
    if points.ndim != 2 or len(points) < 4 or not len(points) == len(domains) == len(classes):
        raise ValueError(
            f"embedding: {points.shape} features, {len(domains)} domains, {len(classes)} classes do not fit"
        )
    kept = np.random.default_rng(seed).permutation(len(points))[:limit]
    points, domain, label = points[kept], np.asarray(domains)[kept], np.asarray(classes)[kept]
    places = t_sne(points, seed)
    equal = "" if places.any() else " (all features are equal)"

    figure, (left, right) = new_figure(10, 4.8, columns=2)
    order = list(dict.fromkeys(domains))
    style = styles(order)
    for name in order:
        colour, marker = style[name]
        x, y = places[domain == name].T
        left.scatter(x, y, s=12, c=colour, marker=marker, alpha=0.65, linewidths=0, label=escape.plot(name))
    left.set_title(f"by domain{equal}", fontsize=10, loc="left")
    legend(left, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=4, markerscale=1.8, handletextpad=0.2)
    names = sorted(set(label.tolist()))
    for name, shade in zip(names, shades(len(names), len(order)), strict=True):
        for where in order:
            x, y = places[(label == name) & (domain == where)].T
            right.scatter(x, y, s=12, color=shade, marker=style[where][1], alpha=0.65, linewidths=0)
        said = escape.plot(class_names[int(name)] if class_names is not None else name)
        right.scatter([], [], s=12, color=shade, marker="o", label=said)
    right.set_title(f"by {by}, n = {len(points):,}{equal}", fontsize=10, loc="left")
    if len(names) <= 24:
        columns = 10 if len(names) <= 10 and not are_long([str(name) for name in class_names or names]) else 4
        legend(
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
        figure.suptitle(escape.plot(title), fontsize=11)
    return figure


def t_sne(features: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Places in two dimensions: t-SNE (van der Maaten and Hinton, 2008) of at most 50 principal components.

    Features that are all equal have one place. scikit-learn divides by their spread, and crashes.

    Args:
        features: (N, d), N at least 4.
        seed: of t-SNE.

    Returns:
        (N, 2).

    Raises:
        ValueError: if a feature is not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if not np.isfinite(features).all():
        raise ValueError("embedding: a feature is not finite")
    points = features - features.mean(axis=0)
    spread = np.abs(points).max(initial=0.0)
    if spread <= ROUNDING * np.abs(features).max(initial=0.0):
        return np.zeros((len(points), 2))
    points = np.pad(points / spread, ((0, 0), (0, max(0, 2 - points.shape[1]))))
    if min(points.shape) > 50:
        points = PCA(50, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=ITERATIONS)
    places: NDArray[np.float64] = tsne.fit_transform(points)
    return places
