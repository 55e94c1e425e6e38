"""Measures how well a linear classifier tells two domains apart."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST_ROWS = 2000
"""Rows of each domain that are compared at most, unless another number is given."""


def proxy_a_distance(
    source: Tensor, target: Tensor, *, seed: int, most: int = MOST_ROWS, regularisation: float = 1.0
) -> float:
    """The proxy A-distance 2 (1 - 2 e) of two domains (Ben-David et al., NIPS 2006; Ganin et al., JMLR 17 (2016)).

    The same number of rows is drawn from each domain. A logistic regression learns on one half of them which domain
    a row is from. e is its error on the other half. Features are centred and divided by their standard deviation, both
    of the first half. Neither labels nor their number matter.

    The papers take a linear support vector machine. Both are linear classifiers, but their numbers differ a little.

    Args:
        source: features of one domain, (n, d), finite.
        target: features of the other domain, (m, d), finite.
        seed: of the draw.
        most: rows of each domain that are used at most.
        regularisation: weight of the squared norm of the classifier, at least 0.

    Returns:
        At most 2, which says that all rows are told apart. 0 says that the classifier is as good as chance, and a value
        below 0 that it is worse.

    Raises:
        ValueError: if the widths differ, if a domain has fewer than 4 rows, or if a value is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    domains = [one.detach().double().cpu().numpy() for one in (source, target)]
    if any(one.ndim != 2 for one in domains) or domains[0].shape[1] != domains[1].shape[1]:
        raise ValueError(f"proxy_a_distance: features of shapes {domains[0].shape} and {domains[1].shape}")
    count = min(*map(len, domains), most)
    if count < 4:
        raise ValueError(f"proxy_a_distance: {count} rows a domain, and at least 4 are needed")
    if not all(np.isfinite(one).all() for one in domains):
        raise ValueError("proxy_a_distance: a value is not finite")
    draw = np.random.default_rng(seed)
    rows = [one[draw.permutation(len(one))[:count]] for one in domains]
    half = count // 2
    learn, check = np.concatenate([one[:half] for one in rows]), np.concatenate([one[half:] for one in rows])
    mean, deviation = learn.mean(0), learn.std(0)
    deviation[deviation == 0] = 1
    strength = np.inf if regularisation == 0 else 1 / regularisation
    classifier = LogisticRegression(C=strength, max_iter=1000)
    classifier.fit((learn - mean) / deviation, _domain_of_each(half))
    wrong = classifier.predict((check - mean) / deviation) != _domain_of_each(count - half)
    return float(2 * (1 - 2 * wrong.mean()))


def _domain_of_each(count: int) -> NDArray[np.int64]:
    """0 for each of ``count`` rows of the source, then 1 for each of as many of the target."""
    return np.repeat(np.arange(2), count)
