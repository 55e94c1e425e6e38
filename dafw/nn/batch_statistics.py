"""Statistics of a batch that leave out padding and may span the ranks, and normalisation by them."""

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows, world_size
from dafw.nn.precision import full_precision


def batch_statistics(x: Tensor, inside: Tensor | None, over_ranks: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel. They can be differentiated any number of times.

    Rank r has n_r values per channel with mean m_r and biased variance v_r. With N = sum n_r the statistics are
    m = sum (n_r / N) m_r and v = sum (n_r / N) (v_r + (m_r - m)^2). Each pass has one collective of 2 C + 1 numbers.

    Args:
        x: (n, C, ...).
        inside: (n, 1, ...) bool, the positions that count; ``None`` if all do.
        over_ranks: whether the rows of all ranks count.

    Returns:
        m (C,), v (C,), and the number N of values per channel, (1,). All are 0 if no position counts.
    """
    channels = x.shape[1]
    wide, dims = full_precision(x), [0, *range(2, x.ndim)]
    if inside is None:
        var, mean = torch.var_mean(wide, dims, correction=0)
        count = mean.new_full((1,), x.numel() // channels)
    else:
        count = inside.sum().to(wide.dtype).view(1)
        values = count.clamp_min(1)
        mean = (wide * inside).sum(dims) / values
        var = ((wide - mean.view(1, -1, *[1] * (x.ndim - 2))).square() * inside).sum(dims) / values
    if not over_ranks:
        return mean, var, count
    ranks = gather_rows(torch.cat([mean, var, count])[None])
    means, variances, sizes = torch.split(ranks, [channels, channels, 1], dim=1)
    total = sizes.sum()
    shares = sizes / total.clamp_min(1)
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total.view(1)


def normalise(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel; the result has the shape and dtype of ``x``.

    Args:
        x: (n, C, ...).
        mean: (C,).
        var: (C,).
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
    """
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    return torch.addcmul(shift.view(shape), full_precision(x), scale.view(shape)).to(x.dtype)


def renormalise(
    x: Tensor,
    batch: tuple[Tensor, Tensor],
    running: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalises by running statistics, with the gradient of a normalisation by the batch.

    That is test-time batch renormalisation: Zhao et al., DELTA, ICLR 2023, https://arxiv.org/abs/2301.13018 (recalled).

    Args:
        x: (n, C, ...).
        batch: mean and variance of the batch, (C,) each. Gradients flow through them.
        running: mean and variance that normalise, (C,) each.
        weight: (C,).
        bias: (C,).
        eps: added to both variances.
    """
    (mean, var), (running_mean, running_var) = batch, (one.detach().to(batch[0]) for one in running)
    inverse = (running_var + eps).rsqrt()
    scale, shift = (var.detach() + eps).sqrt() * inverse, (mean.detach() - running_mean) * inverse
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    return normalise(x, mean, var, scale, shift if bias is None else shift + bias, eps)


def normalise_by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, inside: Tensor | None, over_ranks: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises by :func:`batch_statistics`; the result can be differentiated any number of times.

    Args:
        x: (n, C, ...).
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        inside: see :func:`batch_statistics`.
        over_ranks: see :func:`batch_statistics`.

    Returns:
        The normalised x, m (C,), and the unbiased variance v N / (N - 1) (C,).

    Raises:
        ValueError: for one value per channel over all ranks. It assumes that all ranks have as many rows.
    """
    if inside is None and x.numel() // x.shape[1] * world_size() <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    mean, var, total = batch_statistics(x, inside, over_ranks)
    return normalise(x, mean, var, weight, bias, eps), mean, var * (total / (total - 1).clamp_min(1))
