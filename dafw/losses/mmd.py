"""Maximum mean discrepancy with a family of Gaussian kernels."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision

MULTIPLIERS = (0.125, 0.25, 0.5, 1.0, 2.0)
#: The gammas of DomainBed's kernels exp(-gamma d).
GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
Estimator = Literal["unbiased", "biased", "tllib"]


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, at least in float32, also under autocast.

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


def gaussian_kernels(
    distances: Tensor, multipliers: Sequence[float] = MULTIPLIERS, unit: Tensor | float | None = None
) -> Tensor:
    """Sum of Gaussian kernels, sum_a exp(-d / (2 a m)).

    Args:
        distances: (N, N) squared distances with the zero diagonal; any shape if ``unit`` is given.
        multipliers: the a, one per kernel.
        unit: m, without gradient; ``None``: the mean of all entries of ``distances``.

    Returns:
        A tensor shaped like ``distances``. The diagonal of a matrix holds the number of kernels.
    """
    unit = distances.mean() if unit is None else unit
    unit = unit.detach().clamp_min(1e-12) if isinstance(unit, Tensor) else unit
    scaled = distances / (-2 * unit)
    kernels = torch.exp(scaled / multipliers[0])
    for multiplier in multipliers[1:]:
        kernels = kernels + torch.exp(scaled / multiplier)
    return kernels


def doubling_kernels(distances: Tensor, count: int = 5, bandwidth: Tensor | float | None = None) -> Tensor:
    """sum_{q < count} exp(-d / (b 2^q)), the kernels of DCAN (Li et al., AAAI 2020; read in the authors' code).

    Args:
        distances: (N, N) squared distances; any shape if ``bandwidth`` is given.
        count: number of kernels.
        bandwidth: b, without gradient; ``None``: the mean over pairs of different rows / 2^(count // 2).

    Returns:
        A tensor shaped like ``distances``.
    """
    if bandwidth is None:
        pairs = distances.shape[0] * (distances.shape[0] - 1)
        bandwidth = distances.detach().sum() / (pairs * 2 ** (count // 2))
    return gaussian_kernels(distances, [2.0**q / 2 for q in range(count)], bandwidth)


def mean_discrepancy(
    kernels: Tensor, num_source: int, *, estimator: Literal["unbiased", "biased"] = "unbiased"
) -> Tensor:
    """MMD^2 from a kernel matrix, in quadratic time: mean k(s, s') + mean k(t, t') - 2 mean k(s, t).

    Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012). ``unbiased`` is eq. (3): the first two means leave out
    the diagonals, and the value can be negative. ``biased`` is eq. (5): the diagonals are included, and the value is
    zero for equal samples.

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


def linear_discrepancy(kernels: Tensor, *, cyclic: bool = False, num_source: int | None = None) -> Tensor:
    """MMD^2 of two samples in linear time, from n pairs (i, j) of positions instead of n^2.

    Mean over pairs of k(s_i, s_j) + k(t_i, t_j) - k(s_i, t_j) - k(s_j, t_i): Gretton et al., JMLR 13 (2012), lemma 14.

    Args:
        kernels: (N, N), source rows and columns first.
        cyclic: use the n pairs (i, i + 1 mod n), where each row is in two pairs, instead of the n / 2 pairs
            (2i, 2i + 1).
        num_source: number of source rows; ``None``: half of all rows. Only ``cyclic`` allows samples of unequal size:
            the smaller one is repeated until the larger one ends.

    Returns:
        A scalar.
    """
    n = kernels.shape[0] // 2 if num_source is None else num_source
    m = kernels.shape[0] - n
    steps = max(n, m)
    i = torch.arange(steps, device=kernels.device) if cyclic else torch.arange(0, n - 1, 2, device=kernels.device)
    s, s_next, t, t_next = i % n, (i + 1) % n, n + i % m, n + (i + 1) % m
    return (kernels[s, s_next] + kernels[t, t_next] - kernels[s, t_next] - kernels[s_next, t]).mean()


def mk_mmd(
    source: Tensor,
    target: Tensor,
    *,
    multipliers: Sequence[float] = MULTIPLIERS,
    estimator: Estimator = "unbiased",
    linear: bool = False,
) -> Tensor:
    """Squared multi-kernel MMD between two sets of features: Long et al., ICML 2015, https://arxiv.org/abs/1502.02791.

    The kernel is the average of Gaussians with bandwidths ``multipliers`` times the mean squared distance over the
    joint batch. (The paper learns the weights of that convex combination; equal weights are common practice.)
    ``estimator="tllib"`` is the loss of the Transfer-Learning-Library. It sums the kernels instead of averaging them,
    so its value is the unbiased one times the number of kernels, plus the constant 2 / (n - 1).

    Args:
        source: (n, d) features; on several ranks this rank's rows; all ranks' rows are gathered.
        target: (m, d) features.
        multipliers: one per kernel.
        estimator: ``unbiased`` (the paper's), ``biased`` (never negative), or ``tllib``.
        linear: use the estimator over neighbouring rows (the paper's n / 2 disjoint pairs; for ``tllib`` n cyclic
            pairs). It needs n = m.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than two rows in a domain; unequal sizes where equal ones are needed; ``biased`` with
            ``linear``.
    """
    source, target = gather_rows(source), gather_rows(target)
    kernels = gaussian_kernels(squared_distances(torch.cat([source, target])), multipliers)
    return _estimate(kernels, len(multipliers), (len(source), len(target)), estimator, linear)


def joint_mk_mmd(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    *,
    sigma: float = 0.92,
    multipliers: Sequence[float] = MULTIPLIERS,
    estimator: Estimator = "unbiased",
    linear: bool = False,
) -> Tensor:
    """Squared MMD between two joint distributions of features and predictions: Long et al., ICML 2017.

    https://arxiv.org/abs/1605.06636. The kernel on the features is that of :func:`mk_mmd`. It is multiplied by
    exp(-|p - q|^2 / (2 sigma^2)) on the softmax of the logits. The estimators are those of :func:`mk_mmd`.

    Args:
        source: (n, d) features and (n, K) logits; on several ranks this rank's rows; all ranks' rows are gathered.
        target: (m, d) features and (m, K) logits.
        sigma: standard deviation of the Gaussian of the predictions.
        multipliers: one per kernel of the features.
        estimator: see :func:`mk_mmd`.
        linear: see :func:`mk_mmd`.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`mk_mmd`.
    """
    features = [gather_rows(domain[0]) for domain in (source, target)]
    predictions = [full_precision(gather_rows(domain[1])).softmax(1) for domain in (source, target)]
    kernels = gaussian_kernels(squared_distances(torch.cat(features)), multipliers)
    kernels = kernels * torch.exp(squared_distances(torch.cat(predictions)) / (-2 * sigma**2))
    return _estimate(kernels, len(multipliers), (len(features[0]), len(features[1])), estimator, linear)


def _estimate(kernels: Tensor, count: int, rows: tuple[int, int], estimator: Estimator, linear: bool) -> Tensor:
    """The estimate from the sum of ``count`` kernels, (n + m, n + m); ``rows`` is (n, m)."""
    n, m = rows
    if min(n, m) < 2:
        raise ValueError(f"MMD needs at least two rows of each domain, not {n} and {m}")
    if n != m and (linear or estimator == "tllib"):
        raise ValueError(f"this MMD estimator needs as many source as target rows, not {n} and {m}")
    if linear and estimator == "biased":
        raise ValueError("there is no biased estimator in linear time")
    if estimator != "tllib":
        kernels = kernels / count
        return linear_discrepancy(kernels) if linear else mean_discrepancy(kernels, n, estimator=estimator)
    value = linear_discrepancy(kernels, cyclic=True) if linear else mean_discrepancy(kernels, n)
    return value + 2 / (n - 1)


def pairwise_mmd(domains: Sequence[Tensor], gammas: Sequence[float] = GAMMAS) -> Tensor:
    """Squared MMD (biased, quadratic time), averaged over all pairs of domains: "MMD" of DomainBed (read in its code).

    The kernel is the *sum* of exp(-gamma d) over fixed gammas, where d is the squared distance. No bandwidth is
    computed from the data.

    Args:
        domains: features (n_m, d) of each; on several ranks this rank's rows; all ranks' rows are gathered.
        gammas: one per kernel.

    Returns:
        A scalar; 0 for a single domain.
    """
    rows = [gather_rows(features) for features in domains]
    sizes = [len(features) for features in rows]
    distances = squared_distances(torch.cat(rows))
    distances = distances - distances.diagonal().diag()  # exact zeros: a large gamma would amplify rounding errors
    kernels = gaussian_kernels(distances, [0.5 / gamma for gamma in gammas], 1.0)
    means = [[block.mean() for block in torch.split(strip, sizes, 1)] for strip in torch.split(kernels, sizes)]
    pairs = [means[i][i] + means[j][j] - 2 * means[i][j] for i, j in combinations(range(len(rows)), 2)]
    return torch.stack(pairs).mean() if pairs else kernels.new_zeros(())


def cyclic_mmd(source: Tensor, target: Tensor, *, count: int = 5, bandwidth: float | None = None) -> Tensor:
    """Squared MMD in linear time over the pairs (i, i + 1), as DCAN's authors compute it (read in their code).

    The kernels are summed, not averaged. If both samples have the same size, the value is zero for equal samples, and
    its mean over all orders of each domain's rows is the unbiased estimate in quadratic time.

    Args:
        source: (n, d) features; on several ranks this rank's rows; all ranks' rows are gathered.
        target: (m, d) features.
        count: number of kernels, see :func:`doubling_kernels`.
        bandwidth: that of the narrowest kernel; ``None``: computed from the mean distance.

    Returns:
        A scalar; it can be negative.

    Raises:
        ValueError: fewer than two rows in a domain.
    """
    source, target = gather_rows(source), gather_rows(target)
    n, m = source.shape[0], target.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"MMD needs at least two rows of each domain, not {n} and {m}")
    kernels = doubling_kernels(squared_distances(torch.cat([source, target])), count, bandwidth)
    return linear_discrepancy(kernels, cyclic=True, num_source=n)


def subset_mmd(
    source: Tensor,
    target: Tensor,
    source_subsets: Tensor,
    target_subsets: Tensor,
    *,
    count: int = 5,
    bandwidth: float | None = None,
) -> Tensor:
    """Squared MMD (biased, quadratic time) between subsets of two samples, many pairs of subsets at once.

    Let w_k be the difference of the two uniform distributions over the rows of pair k. The value is w_k' K w_k, the
    squared distance of the two mean embeddings. All subsets share one bandwidth, computed from all rows.

    Args:
        source: (n, d) features of all ranks; nothing is gathered here.
        target: (m, d) features of all ranks.
        source_subsets: (k, n) bool, whether a row is in a subset.
        target_subsets: (k, m) bool.
        count: number of kernels, see :func:`doubling_kernels`.
        bandwidth: that of the narrowest kernel; ``None``: computed from the mean distance.

    Returns:
        (k,), not negative; 0 if one of the two subsets is empty.
    """
    kernels = doubling_kernels(squared_distances(torch.cat([source, target])), count, bandwidth)
    sizes = [subsets.sum(1, keepdim=True) for subsets in (source_subsets, target_subsets)]
    both = (sizes[0] > 0) & (sizes[1] > 0)
    shares = [s * both / n.clamp_min(1) for s, n in zip((source_subsets, target_subsets), sizes, strict=True)]
    weights = torch.cat([shares[0], -shares[1]], 1).to(kernels.dtype)
    with torch.autocast(kernels.device.type, enabled=False):
        return (weights @ kernels * weights).sum(1).clamp_min(0)


def subset_cyclic_mmd(
    source: Tensor,
    target: Tensor,
    source_subsets: Tensor,
    target_subsets: Tensor,
    *,
    count: int = 5,
    bandwidth: float | None = None,
    offset: bool = False,
) -> Tensor:
    """:func:`subset_mmd` in linear time, the regulariser of DCAN's authors (read in their code).

    For subsets with n_k and m_k rows it is the sum over i < n_k of k(s_i, s_i+1) + k(t_i, t_i+1) - k(s_i, t_i+1) -
    k(s_i+1, t_i), divided by n_k + m_k. Positions are modulo n_k and m_k. Each pair of subsets has its own bandwidth.
    The rows of both subsets form one list, source rows first. t_i starts at position n_k of it; in the authors' code
    t_i starts at position m_k (``offset``), which takes source rows for target rows unless the subsets are equally
    large. Shapes are fixed and rows are picked by sorting, so the host reads nothing.

    Args:
        source: (n, d) features of all ranks; nothing is gathered here.
        target: (m, d) features of all ranks.
        source_subsets: (k, n) bool, whether a row is in a subset.
        target_subsets: (k, m) bool.
        count: number of kernels, see :func:`doubling_kernels`.
        bandwidth: that of the narrowest kernel; ``None``: computed from the mean distance.
        offset: use the authors' position of t_i.

    Returns:
        (k,); 0 if one of the two subsets is empty. It can be negative.
    """
    distances = squared_distances(torch.cat([source, target]))
    n = source.shape[0]
    subsets = torch.cat([source_subsets, target_subsets], 1)
    n_k, m_k = (s.sum(1, keepdim=True) for s in (source_subsets, target_subsets))
    unit: Tensor | float
    if bandwidth is None:
        inside, size = subsets.to(distances.dtype), n_k + m_k
        with torch.autocast(distances.device.type, enabled=False):
            total = (inside @ distances.detach() * inside).sum(1, keepdim=True)
        unit = total / ((size * (size - 1)).clamp_min(1) * 2 ** (count // 2))
    else:
        unit = bandwidth
    rows = subsets.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # row k: subset k's rows, source first
    i = torch.arange(n, device=source.device)[None]

    def row(step: Tensor, of_source: bool) -> Tensor:
        place = step % n_k.clamp_min(1)
        if not of_source:
            place = m_k + place if offset else n_k + step % m_k.clamp_min(1)
        return rows.gather(1, place)

    s, s_next, t, t_next = row(i, True), row(i + 1, True), row(i, False), row(i + 1, False)

    def kernels(one: Tensor, other: Tensor) -> Tensor:
        return doubling_kernels(distances[one, other], count, unit)

    terms = kernels(s, s_next) + kernels(t, t_next) - kernels(s, t_next) - kernels(s_next, t)
    counted = (i < n_k) & (m_k > 0)
    return (terms * counted).sum(1) / (n_k + m_k).squeeze(1).clamp_min(1)
