"""Differences of second-order statistics between two domains."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of the rows of all ranks, at least in float32, also under autocast."""
    features = gather_rows(features)
    rows = features.shape[0]
    if rows < 2:
        raise ValueError(f"a covariance needs at least two rows, not {rows}")
    with torch.autocast(features.device.type, enabled=False):
        features = full_precision(features)
        mean = features.mean(0)
        centred = features - mean
        return mean, centred.t() @ centred / (rows - 1)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """||C_s - C_t||_F^2 / (4 d^2): Sun and Saenko, "Deep CORAL", 2016, eq. (1), https://arxiv.org/abs/1607.01719.

    Args:
        source: (n, d) features; on several ranks this rank's rows; all ranks' rows are gathered.
        target: (m, d) features.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than two rows in a domain.
    """
    difference = _moments(source)[1] - _moments(target)[1]
    return difference.square().mean() / 4


def mean_and_covariance(source: Tensor, target: Tensor) -> Tensor:
    """mean((m_s - m_t)^2) + mean((C_s - C_t)^2): the "CORAL" of DomainBed and of the Transfer-Learning-Library.

    Unlike Deep CORAL it also matches the means, and its second term is four times as large.

    Args:
        source: (n, d) features; on several ranks this rank's rows; all ranks' rows are gathered.
        target: (m, d) features.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than two rows in a domain.
    """
    return pairwise_mean_and_covariance([source, target])


def pairwise_mean_and_covariance(domains: Sequence[Tensor]) -> Tensor:
    """Mean of :func:`mean_and_covariance` over all pairs of domains; each domain's moments are computed once.

    Args:
        domains: features (n_m, d) of each; on several ranks this rank's rows; all ranks' rows are gathered.

    Returns:
        A scalar; 0 for a single domain.

    Raises:
        ValueError: fewer than two rows in a domain.
    """
    moments = [_moments(features) for features in domains]
    pairs = [
        (mean - other_mean).square().mean() + (covariance - other_covariance).square().mean()
        for (mean, covariance), (other_mean, other_covariance) in combinations(moments, 2)
    ]
    return torch.stack(pairs).mean() if pairs else moments[0][0].new_zeros(())
