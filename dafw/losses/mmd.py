"""Maximum mean discrepancy with a family of Gaussian kernels."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision

MULTIPLIERS = (0.125, 0.25, 0.5, 1.0, 2.0)
Estimator = Literal["unbiased", "biased", "tllib"]


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, at least in float32 and whatever the autocast.

    Args:
        x: (N, d).

    Returns:
        (N, N), not negative.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = full_precision(x)
        x = x - x.detach().mean(0)  # distances do not change, rounding errors shrink
        squares = x.square().sum(1)
        return (squares[:, None] + squares - 2 * x @ x.t()).clamp_min(0)


def gaussian_kernels(distances: Tensor, multipliers: Sequence[float] = MULTIPLIERS) -> Tensor:
    """Sum of Gaussian kernels, sum_a exp(-d / (2 a m)), m the mean of all entries of ``distances``, without gradient.

    Args:
        distances: (N, N) squared distances, the zero diagonal included.
        multipliers: the a, one per kernel.

    Returns:
        (N, N), the diagonal being the number of kernels.
    """
    scaled = distances / (-2 * distances.detach().mean().clamp_min(1e-12))
    kernels = torch.exp(scaled / multipliers[0])
    for multiplier in multipliers[1:]:
        kernels = kernels + torch.exp(scaled / multiplier)
    return kernels


def mean_discrepancy(
    kernels: Tensor, num_source: int, *, estimator: Literal["unbiased", "biased"] = "unbiased"
) -> Tensor:
    """MMD^2 from a kernel matrix, in quadratic time: mean k(s, s') + mean k(t, t') - 2 mean k(s, t).

    Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012): ``unbiased`` is eq. (3), the first two means without
    the diagonals, and can be negative; ``biased`` is eq. (5), with them, and zero for equal samples.

    Args:
        kernels: (N, N), source rows and columns first.
        num_source: number of source rows.
        estimator: see above.

    Returns:
        A scalar.
    """
    within_source, within_target = kernels[:num_source, :num_source], kernels[num_source:, num_source:]
    n, m = within_source.shape[0], within_target.shape[0]
    across = kernels[:num_source, num_source:].mean()
    if estimator == "biased":
        return within_source.mean() + within_target.mean() - 2 * across
    source = (within_source.sum() - within_source.diagonal().sum()) / (n * (n - 1))
    target = (within_target.sum() - within_target.diagonal().sum()) / (m * (m - 1))
    return source + target - 2 * across


def linear_discrepancy(kernels: Tensor, *, cyclic: bool = False) -> Tensor:
    """MMD^2 of two samples of equal size n from pairs (i, j) of positions alone, n of them instead of n^2.

    mean over pairs of k(s_i, s_j) + k(t_i, t_j) - k(s_i, t_j) - k(s_j, t_i): Gretton et al., JMLR 13 (2012), lemma 14.

    Args:
        kernels: (2n, 2n), source rows and columns first.
        cyclic: the n pairs (i, i + 1 mod n), each row in two of them, instead of the n / 2 pairs (2i, 2i + 1).

    Returns:
        A scalar.
    """
    n = kernels.shape[0] // 2
    i = torch.arange(n, device=kernels.device) if cyclic else torch.arange(0, n - 1, 2, device=kernels.device)
    j = (i + 1) % n
    return (kernels[i, j] + kernels[n + i, n + j] - kernels[i, n + j] - kernels[j, n + i]).mean()


def mk_mmd(
    source: Tensor,
    target: Tensor,
    *,
    multipliers: Sequence[float] = MULTIPLIERS,
    estimator: Estimator = "unbiased",
    linear: bool = False,
) -> Tensor:
    """Squared multi-kernel MMD between two sets of features: Long et al., ICML 2015, https://arxiv.org/abs/1502.02791.

    The kernel is the average of Gaussians whose bandwidths are ``multipliers`` times the mean squared distance over the
    joint batch (the paper learns the weights of that convex combination; equal weights are common practice).
    ``estimator="tllib"`` is what the Transfer-Learning-Library minimises: the *sum* of the kernels instead of their
    average, hence as many times the unbiased value, plus the constant 2 / (n - 1).

    Args:
        source: (n, d) features; on several ranks this rank's rows, all of which are gathered.
        target: (m, d) features.
        multipliers: one per kernel.
        estimator: ``unbiased`` (the paper's), ``biased`` (never negative), or ``tllib``.
        linear: use the estimator over neighbouring rows (the paper's n / 2 disjoint pairs; for ``tllib`` n cyclic
            ones). Needs n = m.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than two rows in a domain; unequal sizes where equal ones are needed; ``biased`` with
            ``linear``.
    """
    source, target = gather_rows(source), gather_rows(target)
    n, m = source.shape[0], target.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"MMD needs at least two rows of each domain, not {n} and {m}")
    if n != m and (linear or estimator == "tllib"):
        raise ValueError(f"this MMD estimator needs as many source as target rows, not {n} and {m}")
    if linear and estimator == "biased":
        raise ValueError("there is no biased estimator in linear time")
    kernels = gaussian_kernels(squared_distances(torch.cat([source, target])), multipliers)
    if estimator != "tllib":
        kernels = kernels / len(multipliers)
        return linear_discrepancy(kernels) if linear else mean_discrepancy(kernels, n, estimator=estimator)
    value = linear_discrepancy(kernels, cyclic=True) if linear else mean_discrepancy(kernels, n)
    return value + 2 / (n - 1)
