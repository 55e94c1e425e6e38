"""Domain consensus: clusters of a target that agree with classes of a source."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Clusters(NamedTuple):
    """The target's samples in k clusters, some of them matched with source classes.

    Attributes:
        codes: (n,) int64, the cluster of each sample.
        centres: (k, d) means of the clusters' samples.
        pairs: (m, 2) int64, pairs of a class and its matching cluster.
        score: mean consensus score of the pairs.
    """

    codes: Tensor
    centres: Tensor
    pairs: Tensor
    score: float


def class_centres(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean direction of each class that occurs.

    Args:
        features: (n, d) unit vectors.
        labels: (n,) int64.

    Returns:
        (c, d) normalised means, and their (c,) classes in ascending order.
    """
    classes, positions = torch.unique(labels, return_inverse=True)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, positions, features)
    return F.normalize(sums, dim=1), classes


def kmeans(
    features: Tensor, k: int, *, start: Tensor | None = None, trials: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """k-means of scikit-learn; the result does not depend on the number of processors.

    Args:
        features: (n, d), on the host.
        k: number of clusters, n or fewer.
        start: (k, d) centres to start from, instead of several random starts.
        trials: number of random starts; the best result is returned.
        seed: seed of the random starts.

    Returns:
        Centres (k, d) and codes (n,) int64.
    """
    from sklearn.cluster import KMeans  # takes half a second to import
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    first = "k-means++" if start is None else start.to(features).numpy()
    model = KMeans(k, init=first, n_init=trials if start is None else 1, random_state=seed)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than clusters
        model.fit(features.numpy())
    return torch.from_numpy(model.cluster_centers_).to(features), torch.from_numpy(model.labels_).long()


def match(one: Tensor, other: Tensor) -> Tensor:
    """Mutual nearest neighbours by cosine: (m, 2) int64 pairs of rows of (a, d) and (b, d); each row at most once."""
    similarities = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    there, back = similarities.argmax(1), similarities.argmax(0)
    rows = torch.arange(len(one))
    mutual = back[there] == rows
    return torch.stack([rows[mutual], there[mutual]], 1)


def consensus_scores(
    pairs: Tensor, source: tuple[Tensor, Tensor, Tensor], target: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """How far the samples of each matched pair confirm the match.

    The score is the mean of two shares: the share of class i's samples whose nearest target centre is that of cluster
    j, and the share of cluster j's samples whose nearest source centre is that of class i. Li et al., CVPR 2021 (DCC).

    Args:
        pairs: (m, 2) rows of the source's and of the target's centres.
        source: features (n_s, d), the row of each sample's own centre (n_s,), and the centres (a, d).
        target: features (n_t, d), codes (n_t,) and centres (b, d).

    Returns:
        (m,) in [0, 1]; 1 if the two clusterings agree on all samples of a pair.
    """
    shares = []
    for side, (features, own, _), centres in ((0, source, target[2]), (1, target, source[2])):
        nearest = (features @ F.normalize(centres, dim=1).T).argmax(1)
        of_pair = own == pairs[:, side, None]
        hits = of_pair & (nearest == pairs[:, 1 - side, None])
        shares.append(hits.sum(1).to(features.dtype) / of_pair.sum(1).clamp_min(1))
    return (shares[0] + shares[1]) / 2


def cluster(
    target: Tensor,
    source: Tensor,
    labels: Tensor,
    k: int,
    *,
    start: Tensor | None = None,
    trials: int = 10,
    seed: int = 0,
) -> Clusters:
    """Clusters the target by k-means and matches the clusters with the source's classes.

    Args:
        target: (n_t, d) unit vectors, on the host.
        source: (n_s, d) unit vectors.
        labels: (n_s,) classes.
        k: number of clusters.
        start: see :func:`kmeans`.
        trials: see :func:`kmeans`.
        seed: see :func:`kmeans`.
    """
    centres, codes = kmeans(target, k, start=start, trials=trials, seed=seed)
    class_means, classes = class_centres(source, labels)
    pairs = match(class_means, centres)
    places = torch.searchsorted(classes, labels)
    scores = consensus_scores(pairs, (source, places, class_means), (target, codes, centres))
    pairs = torch.stack([classes[pairs[:, 0]], pairs[:, 1]], 1)
    return Clusters(codes, centres, pairs, float(scores.mean()) if len(scores) else 0.0)


def search(make: Callable[[int], Clusters], first: int, last: int, step: int, patience: int = 3) -> Clusters:
    """Tries k = first, first + step, ..., last; returns the clusters with the highest score, the first of equals.

    The search stops early after ``patience`` values of k in a row that were not better than their predecessor. It then
    returns the clusters of the k before them, even if they are not the best (read in DCC's code).

    Args:
        make: makes the clusters for k.
        first: smallest k.
        last: largest k; ``first`` is tried even if it is larger.
        step: distance of two k.
        patience: see above.
    """
    found: list[Clusters] = []
    for k in range(first, max(first, last) + 1, step):
        found.append(make(k))
        recent = [clusters.score for clusters in found[-patience - 1 :]]
        if len(recent) > patience and all(after <= before for before, after in pairwise(recent)):
            return found[-patience - 1]
    return max(found, key=lambda clusters: clusters.score)
