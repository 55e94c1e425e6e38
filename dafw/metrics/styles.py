"""Measures how far groups of samples, such as clusters, contain one known style each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class StyleSplit(NamedTuple):
    """How well groups separate the styles of n samples.

    Attributes:
        samples: n.
        groups: number of groups.
        purity: share of the samples that have the most frequent style of their group.
        baseline: the purity of a single group, which is the share of the most frequent style.
        ami: adjusted mutual information of groups and styles: 1 if they are the same, 0 on average if groups are drawn
            at random. Purity grows with the number of groups, even for random ones; the adjusted information does not.
    """

    samples: int
    groups: int
    purity: float
    baseline: float
    ami: float


def style_split(groups: NDArray[np.int64], styles: NDArray[np.int64]) -> StyleSplit:
    """Purity and adjusted mutual information (Vinh, Epps and Bailey, JMLR 11 (2010); computed by scikit-learn).

    Args:
        groups: (n,), each sample's group; any integers.
        styles: (n,), each sample's style.

    Raises:
        ValueError: if there is no sample, or if the lengths differ.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if len(groups) != len(styles) or not len(groups):
        raise ValueError(f"style_split: {len(groups)} groups for {len(styles)} styles")
    rows, columns = (np.unique(values, return_inverse=True)[1] for values in (groups, styles))
    counts = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(counts, (rows, columns), 1)
    purity, baseline = (float(best) / len(groups) for best in (counts.max(1).sum(), counts.sum(0).max()))
    ami = float(adjusted_mutual_info_score(columns, rows))
    return StyleSplit(len(groups), len(counts), purity, baseline, ami)


def mean_split(splits: Sequence[StyleSplit]) -> StyleSplit:
    """Combines several splits into one: sums of samples and groups, means of the shares weighted by samples.

    Args:
        splits: one or more.
    """
    weights = [split.samples for split in splits]
    purity, baseline, ami = (
        float(np.average([getattr(split, name) for split in splits], weights=weights))
        for name in ("purity", "baseline", "ami")
    )
    return StyleSplit(sum(weights), sum(split.groups for split in splits), purity, baseline, ami)
