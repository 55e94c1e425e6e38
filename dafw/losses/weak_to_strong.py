"""Contrast of a student's regions in strong views with a teacher's regions in weak views, by prototypes of classes."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.distributed import gather_unequal, sum_over_ranks
from dafw.nn.precision import full_precision
from dafw.problems.ranks import share_of_all


class RegionLabels(NamedTuple):
    """What prototypes say of R regions.

    Attributes:
        labels: (R,) int64, the class of the nearest prototype; 0 is the background.
        accepted: (R,) bool, whether it counts.
        weights: (R,), how much a region counts as a negative: 1 for an object, 1 - H(q) / log C for the background.
    """

    labels: Tensor
    accepted: Tensor
    weights: Tensor


@torch.no_grad()
def update_prototypes(
    prototypes: Tensor,
    features: Tensor,
    probabilities: Tensor,
    counts: Tensor,
    *,
    decay: float = 0.99,
    threshold: float = 0.7,
    background_threshold: float = 0.9,
) -> Tensor:
    """Prototypes of classes after a step: moving averages of the features of sure regions of all ranks.

    A prototype that is still zero starts as the mean of all features, weighted by the probabilities of its class.

    Args:
        prototypes: (C, d), unit vectors or zeros; class 0 is the background.
        features: (R, d), unit vectors.
        probabilities: (R, C), of the teacher.
        counts: (R,) bool, the regions that count.
        decay: share of itself that a prototype keeps.
        threshold: probability above which a region is sure to be of a class.
        background_threshold: the same of the background.

    Returns:
        (C, d), unit vectors; zero for a class that no region may be of.
    """
    likely = full_precision(probabilities) * counts[:, None]
    limits = likely.new_full((likely.shape[1],), threshold)
    limits[0] = background_threshold
    units = full_precision(features)
    sure = (likely > limits).to(units.dtype)
    sums = torch.stack([sure.T @ units, likely.to(units.dtype).T @ units])
    directions = F.normalize(sum_over_ranks(sums), dim=2)
    moved = F.normalize(decay * prototypes + (1 - decay) * directions[0], dim=1)
    known = (prototypes != 0).any(1, keepdim=True)
    return torch.where(known, moved, directions[1]).to(prototypes.dtype)


@torch.no_grad()
def label_regions(
    prototypes: Tensor, features: Tensor, probabilities: Tensor, counts: Tensor, margin: float = 0.1
) -> RegionLabels:
    """Labels regions by the nearest prototype.

    A label counts if the teacher finds the same class most probable, or if the prototype is nearer than the next one by
    more than ``margin``, in cosines.

    Args:
        prototypes: (C, d), see :func:`update_prototypes`.
        features: (R, d), unit vectors.
        probabilities: (R, C), of the teacher.
        counts: (R,) bool, the regions that count.
        margin: see above.
    """
    likely = full_precision(probabilities)
    cosines = full_precision(features) @ prototypes.to(likely.dtype).T
    best = cosines.topk(2, dim=1)
    labels = best.indices[:, 0]
    agrees = labels == likely.argmax(1)
    clear = best.values[:, 0] - best.values[:, 1] > margin
    entropy = -(likely * likely.clamp_min(torch.finfo(likely.dtype).tiny).log()).sum(1) / math.log(likely.shape[1])
    weights = torch.where(labels > 0, 1.0, (1 - entropy).clamp(0, 1))
    return RegionLabels(labels, counts & (agrees | clear), weights)


def weak_to_strong_contrast(strong: Tensor, weak: Tensor, found: RegionLabels, temperature: float = 0.07) -> Tensor:
    """The supervised contrast of strong regions with weak ones; uncertain background counts less as a negative.

    mean_i -1/|P(i)| sum_{p in P(i)} log(e^{s_i w_p / T} / sum_a v_a e^{s_i w_a / T}), over the regions i that are
    labelled as objects; P(i) are the regions with the label of i, and v the weights. The weak regions of all ranks are
    compared with.

    Args:
        strong: (R, d), unit vectors of the student, which learn.
        weak: (R, d), unit vectors of the teacher for the same regions; no gradient flows into them.
        found: labels of these regions.
        temperature: T.

    Returns:
        A scalar, 0 if no region is labelled as an object. The ranks' mean is the value for the regions of all ranks.
    """
    with torch.no_grad():
        keys, labels = gather_unequal(full_precision(weak.detach())), gather_unequal(found.labels)
        accepted, weights = gather_unequal(found.accepted), gather_unequal(found.weights)
        anchors = found.accepted & (found.labels > 0)
        positive = (found.labels[:, None] == labels) & accepted
        offsets = weights.to(keys.dtype).log().masked_fill(~accepted, -torch.inf)
    similar = full_precision(strong) @ keys.T / temperature
    # a row without any key has no finite sum; it is no anchor, and must not spoil the gradient
    offsets = torch.where(accepted.any(), offsets, 0.0)
    log_share = similar - (similar + offsets).logsumexp(1, keepdim=True)
    shares = positive.to(similar.dtype) / positive.sum(1, keepdim=True).clamp_min(1)
    each = -(log_share.masked_fill(~positive, 0) * shares).sum(1)
    return share_of_all(anchors.sum().to(each.dtype)) * each.masked_fill(~anchors, 0).sum()
