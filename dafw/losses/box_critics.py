"""Losses of a detector's critics. Ranks minimise what one process would."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.maps import mean_over_places
from dafw.nn.precision import full_precision


def critic_loss(scores: Tensor, is_source: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of "is source", from logits; the mean over all positions or regions of all ranks.

    Args:
        scores: (N, m) of m positions of N images, or (R,) of regions.
        is_source: bool, shaped like ``scores`` or such that it expands to them.
        valid: which of them count, shaped like ``scores``; ``None``: all do.

    Returns:
        A scalar, 0 if nothing counts.
    """
    scores = full_precision(scores)
    truth = is_source.expand_as(scores).to(scores.dtype)
    values = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    return mean_over_places(values, torch.ones_like(values, dtype=torch.bool) if valid is None else valid)


def consistency(
    position_scores: list[Tensor], region_scores: Tensor, image: Tensor, valid: list[Tensor | None]
) -> Tensor:
    """How far the two critics differ: mean over regions j and levels l of |mean_uv sigmoid(a_l) - sigmoid(b_j)|.

    Chen et al., CVPR 2018, https://arxiv.org/abs/1803.03243, equation 9. The paper writes the L2 norm, which is the
    absolute value for these scalars.

    Args:
        position_scores: of each level (N, m_l), logits of the image critic.
        region_scores: (R,), logits of the instance critic.
        image: (R,) int64, the image that each region is of.
        valid: of each level (N, m_l) bool, the positions that count; ``None``: all do.

    Returns:
        A scalar, 0 if there is no region. Each region of all ranks counts alike.
    """
    means = []
    for scores, inside in zip(position_scores, valid, strict=True):
        p = full_precision(scores).sigmoid()
        if inside is None:
            means.append(p.mean(1))
        else:
            means.append(p.masked_fill(~inside, 0).sum(1) / inside.sum(1).clamp_min(1))
    of_image = torch.stack(means, 1)
    distances = (of_image[image] - full_precision(region_scores).sigmoid()[:, None]).abs()
    return mean_over_places(distances, torch.ones_like(distances, dtype=torch.bool))
