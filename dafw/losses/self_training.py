"""A student that learns from soft labels of a teacher or of itself, and weights of its rows; all row by row."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.entropy import entropy
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_k q_k log p_k with p = softmax(logits) and q = softmax(labels).

    Args:
        logits: (n, K), of the student.
        labels: (n, K), logits of the soft labels. A gradient flows into them, too, if they have one.

    Returns:
        (n,).
    """
    return -(full_precision(labels).softmax(1) * full_precision(logits).log_softmax(1)).sum(1)


def symmetric_cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """Half the cross-entropy of each side with the other as its soft labels.

    Döbler et al., RMT, CVPR 2023, https://arxiv.org/abs/2211.13081. CoTTA's authors take it for ImageNet.

    Args:
        one: logits (n, K).
        other: logits (n, K). A gradient flows into both sides that have one.

    Returns:
        (n,).
    """
    return 0.5 * (soft_cross_entropy(one, other) + soft_cross_entropy(other, one))


def soft_likelihood_ratio(logits: Tensor, *, most: float = 0.99, epsilon: float = 1e-5) -> Tensor:
    """-sum_k p_k log(p_k / (1 - p_k) + epsilon), with p_k cut at ``most``; one that is cut has no gradient.

    Unlike the entropy's, its gradient does not vanish as a prediction becomes sure. Marsden et al., ROID, WACV 2024,
    https://arxiv.org/abs/2306.00650; the constants are those of the authors' code.

    Args:
        logits: (n, K).
        most: largest probability.
        epsilon: added inside the logarithm.

    Returns:
        (n,).
    """
    p = full_precision(logits).softmax(1).clamp_max(most)
    return -(p * (p / (1 - p) + epsilon).log()).sum(1)


@torch.no_grad()
def diverse_and_certain(logits: Tensor, recent: Tensor, temperature: float) -> Tensor:
    """Row weights exp(d c / temperature): large for a sure prediction of what has been predicted rarely of late.

    d is 1 - cos(recent, p), and c is minus the entropy of p, each scaled to [0, 1] by the least and the largest value
    of the rows of all ranks; values that are all equal become 0. A row whose d is below the mean of d has the weight 0.
    ROID, see :func:`soft_likelihood_ratio`.

    Args:
        logits: (n, K), this rank's rows.
        recent: (K,), the mean probability of each class of late.
        temperature: T (paper: 1/3).

    Returns:
        (n,).
    """
    p = full_precision(logits).softmax(1)
    diversity = 1 - F.cosine_similarity(recent.to(p)[None], p, dim=1)
    both = _scaled(torch.stack([diversity, -entropy(logits)], 1))
    diversity, certainty = both.unbind(1)
    kept = diversity >= gather_rows(diversity).mean()
    return torch.where(kept, (diversity * certainty / temperature).exp(), 0.0)


def _scaled(values: Tensor) -> Tensor:
    """Each column of values (n, c) from 0 to 1 over the rows of all ranks."""
    rows = gather_rows(values)
    least, largest = rows.amin(0), rows.amax(0)
    return (values - least) / (largest - least).clamp_min(torch.finfo(values.dtype).tiny)


@torch.no_grad()
def corrected_by_prior(logits: Tensor) -> Tensor:
    """Logits times the smoothed share of their class in the batch of all ranks.

    With the mean probability m (K,) of B rows and s = max(1 / B, 1 / K) / max(m), the factor is (m + s) / (1 + s K).
    ROID, see :func:`soft_likelihood_ratio`. It multiplies logits, so it raises a negative one of a rare class; adding a
    logarithm, as a prior asks for, would not.

    Args:
        logits: (n, K), this rank's rows.

    Returns:
        (n, K).
    """
    rows = gather_rows(full_precision(logits).softmax(1))
    count, classes = rows.shape
    mean = rows.mean(0)
    smoothing = max(1 / count, 1 / classes) / mean.max()
    return logits * ((mean + smoothing) / (1 + smoothing * classes)).to(logits)


def timeliness(ages: Tensor) -> Tensor:
    """exp(-a) / (1 + exp(-a)), from 1/2 for a new sample to 0: RoTTA, Yuan et al., CVPR 2023.

    https://arxiv.org/abs/2303.13899, equation 8 (recalled).

    Args:
        ages: (n,), as shares of the memory's capacity.

    Returns:
        (n,).
    """
    return (-ages).sigmoid()


def contrast_of_views(views: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE in which the V views of a sample attract one another, and all other views of the batch repel.

    The mean over all V n rows i of -1 / (V - 1) sum over the other views j of the same sample of
    log(exp(z_i . z_j / T) / sum over k != i of exp(z_i . z_k / T)). RMT, see :func:`symmetric_cross_entropy`. The rows
    of all ranks repel.

    Args:
        views: (n, V, d), this rank's rows; normalised to length 1 here.
        temperature: T (paper: 0.1).

    Returns:
        A scalar, the same on every rank.
    """
    units = F.normalize(gather_rows(full_precision(views)), dim=2)
    count, per_sample, width = units.shape
    with torch.autocast(views.device.type, enabled=False):
        rows = units.transpose(0, 1).reshape(-1, width)
        scores = rows @ rows.T / temperature
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    log_p = scores - scores.masked_fill(own, -math.inf).logsumexp(1, keepdim=True)
    positive = torch.eye(count, dtype=torch.bool, device=rows.device).repeat(per_sample, per_sample) & ~own
    return -torch.where(positive, log_p, 0.0).sum() / ((per_sample - 1) * len(rows))
