"""Deep embedded validation."""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dafw.selection.base import Evidence, Validator, precise


class DeepEmbeddedValidation(Validator):
    """Estimates the target risk from weighted losses of held-out source samples, with a control variate.

    A logistic regression on the features tells target samples from training samples of the source. Its odds give the
    density ratios w_i = (n / t) P(target | f_i) / P(source | f_i) of the held-out source samples. l_i are their
    cross-entropies. The score is mean(w l) + eta mean(w) - eta, with eta = -cov(w l, w) / var(w). Since E[w] = 1, the
    last two terms cancel in expectation; they reduce the variance. If all weights are equal, eta is 0. Fewer than two
    held-out samples give nan.

    Args:
        regularisation: inverse strength C of the logistic regression's L2 penalty, on standardised features.
    """

    name: ClassVar[str] = "dev"
    higher_is_better: ClassVar[bool] = False
    needs_source: ClassVar[bool] = True
    reference: ClassVar[str] = "You et al., ICML 2019, https://proceedings.mlr.press/v97/you19a.html"

    def __init__(self, regularisation: float = 1.0) -> None:
        self.regularisation = regularisation

    def __call__(self, evidence: Evidence) -> Tensor:
        """Estimated cross-entropy on the target, in nats; it can be negative."""
        logits = precise(evidence.source_logits)
        losses = F.cross_entropy(logits, evidence.source_labels.to(logits.device), reduction="none")
        train, held_out, target = (
            precise(x).cpu().numpy()
            for x in (evidence.source_train_features, evidence.source_features, evidence.target_features)
        )
        finite = all(np.isfinite(x).all() for x in (train, held_out, target))
        if not finite or not len(train) or not len(target) or len(held_out) < 2:
            return losses.new_tensor(torch.nan)
        weights = losses.new_tensor(density_ratios(train, target, held_out, self.regularisation))
        return controlled_mean(weights, losses)


def density_ratios(
    source: NDArray[np.float64], target: NDArray[np.float64], at: NDArray[np.float64], regularisation: float = 1.0
) -> NDArray[np.float64]:
    """Target density divided by source density, from the odds of a logistic regression between the two samples.

    Args:
        source: (n, d).
        target: (t, d).
        at: (m, d), the points at which the ratio is estimated.
        regularisation: inverse strength of the L2 penalty, on features standardised over both samples.

    Returns:
        (m,), not negative.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import: only when needed

    both = np.concatenate([source, target])
    mean, scale = both.mean(0), both.std(0)
    scale[scale == 0] = 1.0
    is_target = np.repeat([0, 1], [len(source), len(target)])
    critic = LogisticRegression(C=regularisation, max_iter=1000).fit((both - mean) / scale, is_target)
    log_odds = critic.decision_function((at - mean) / scale)
    ratios: NDArray[np.float64] = np.exp(log_odds) * (len(source) / len(target))
    return ratios


def controlled_mean(weights: Tensor, losses: Tensor) -> Tensor:
    """mean(w l) + eta (mean(w) - 1) with eta = -cov(w l, w) / var(w), or eta = 0 if all weights are equal.

    Args:
        weights: (m,), with expectation 1.
        losses: (m,).
    """
    weighted = weights * losses
    centred = weights - weights.mean()
    variance = centred.square().sum()
    eta = torch.where((weights == weights[:1]).all(), 0.0, -(centred * weighted).sum() / variance)
    return weighted.mean() + eta * (weights.mean() - 1)
