"""Losses of each pixel's class scores that need no label; padding counts in none of them."""

from typing import Literal

from torch import Tensor

from dafw.losses.maps import mean_over_places
from dafw.nn.precision import full_precision

Ratio = Literal["softmax", "norm_max"]
Divergence = Literal["estimate_prior", "prior_estimate"]
#: Added inside the logarithms of :func:`ratio_divergence`, as the authors of AdaMI do: a prior may be 0.
FLOOR = 1e-10


def pixel_entropy(logits: Tensor, valid: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """The mean over pixels of -sum_k w_k p_k log p_k, in nats.

    Args:
        logits: (n, K, H, W).
        valid: (n, H, W) bool, the pixels that count; ``None`` if all do.
        weights: w (K,); 1 if ``None``.

    Returns:
        A scalar. The mean of the ranks' values is the mean over the pixels of all ranks.
    """
    log_p = full_precision(logits).log_softmax(1)
    terms = log_p.exp() * log_p
    if weights is not None:
        terms = terms * weights.to(terms)[:, None, None]
    return mean_over_places(-terms.sum(1), valid)


def class_ratios(logits: Tensor, valid: Tensor | None = None, ratio: Ratio = "softmax") -> Tensor:
    """The share of each class among the pixels of each image, (n, K).

    Args:
        logits: (n, K, H, W).
        valid: (n, H, W) bool, the pixels that count; ``None`` if all do.
        ratio: ``softmax`` is the mean of p; ``norm_max`` sums p / max_k p over the pixels, then divides by the sum over
            classes.
    """
    p = full_precision(logits).softmax(1)
    if ratio == "norm_max":
        p = p / (p.amax(1, keepdim=True) + FLOOR)
    if valid is not None:
        p = p.masked_fill(~valid[:, None], 0)
    sizes = p.sum((2, 3))
    return sizes / (sizes.sum(1, keepdim=True) + FLOOR)


def ratio_divergence(ratios: Tensor, prior: Tensor, divergence: Divergence = "estimate_prior") -> Tensor:
    """The mean over images of a Kullback-Leibler divergence between class ratios and their prior.

    Args:
        ratios: r (n, K).
        prior: t (K,) or (n, K).
        divergence: ``estimate_prior`` is KL(r || t), ``prior_estimate`` is KL(t || r).
    """
    own, given = ratios, prior.to(ratios)
    if divergence == "prior_estimate":
        own, given = given, own
    terms: Tensor = own * ((own + FLOOR).log() - (given + FLOOR).log())
    return terms.sum(1).mean()
