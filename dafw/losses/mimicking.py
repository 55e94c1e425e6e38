"""A classification loss on target rows without labels: each class's critic refines the prediction.

ParetoDA: Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137. For each of the K classes
a binary critic v_k tells the domains apart. With the domain as evidence, Bayes' rule refines the classifier's
prediction p of a target row: rho_k is proportional to p(target | x, v_k) p_k.

The paper was not at hand. The default ``mode="paper"`` follows a summary of it. ``mode="authors"`` was read in the
authors' code and computes the same as that code where it departs from the summary.

A critic's scores are (n, K, 2) logits, target first, or (n, K), the logit of "source".
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.entropy import information_maximisation, mean_entropy
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision

Mode = Literal["paper", "authors"]


def domain_log_probabilities(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of p(target | x, v_k) and of p(source | x, v_k), each (n, K), at least in float32.

    Raises:
        ValueError: scores that are neither (n, K, 2) nor (n, K).
    """
    scores = full_precision(scores)
    if scores.ndim == 3 and scores.shape[2] == 2:
        target, source = scores.log_softmax(2).unbind(2)
        return target, source
    if scores.ndim != 2:
        raise ValueError(f"scores of class-wise critics are (n, K, 2) or (n, K), not {tuple(scores.shape)}")
    return F.logsigmoid(-scores), F.logsigmoid(scores)


def refine(logits: Tensor, scores: Tensor, *, mode: Mode = "paper") -> Tensor:
    """Logits of the refined prediction rho of target rows; no gradient flows into the critics.

    Args:
        logits: (n, K) of the classifier.
        scores: of the critics on the same rows.
        mode: ``authors`` multiplies the *logits* by p(target | x, v_k).

    Returns:
        (n, K), to be passed through a softmax.
    """
    target, _ = domain_log_probabilities(scores.detach())
    logits = full_precision(logits)
    return logits * target.exp() if mode == "authors" else logits + target


def mimicking_loss(refined: Tensor, *, mode: Mode = "paper") -> Tensor:
    """sum_k m_k log m_k - mean_i sum_k rho_ik log rho_ik, where m is the mean of rho: minus the mutual information.

    Args:
        refined: (n, K) logits of rho; on several ranks this rank's rows; all ranks' rows are gathered.
        mode: ``authors`` adds 1e-6 to m inside its logarithm.

    Returns:
        A scalar from -log K (each row is certain of one class, all classes are equally frequent) to 0 (equal rows).
    """
    if mode == "paper":
        return information_maximisation(refined)
    refined = full_precision(gather_rows(refined))
    marginal = refined.softmax(1).mean(0)
    return (marginal * (marginal + 1e-6).log()).sum() + mean_entropy(refined)


def class_domain_loss(
    source_scores: Tensor, target_scores: Tensor, labels: Tensor, refined: Tensor, *, mode: Mode = "paper"
) -> Tensor:
    """The critics' loss: each critic learns from source rows of its class and from target rows weighted by rho.

    mean_s -log p(source | x, v_y) + mean_t sum_k -rho_k log p(target | x, v_k). No gradient flows into rho.

    Args:
        source_scores: of the critics on (n_s) source rows.
        target_scores: of the critics on (n_t) target rows.
        labels: (n_s,) classes of the source rows.
        refined: (n_t, K) logits of rho, see :func:`refine`.
        mode: ``authors`` departs in three ways. The loss is halved and divided by K. The weights of target rows are
            ``refined`` itself, which may be negative. All source rows train the critic of the last row's class, since
            the authors' loop keeps no other.

    Returns:
        A scalar; a sum of means over rows, so averaging over ranks gives the value of the whole batch.
    """
    _, source = domain_log_probabilities(source_scores)
    target, _ = domain_log_probabilities(target_scores)
    refined = refined.detach()
    if mode == "authors":
        only = source.index_select(1, gather_rows(labels)[-1:])
        return -(only.mean() + (refined * target).sum(1).mean()) / (2 * target.shape[1])
    own = source.gather(1, labels[:, None])
    return -(own.mean() + (torch.softmax(refined, 1) * target).sum(1).mean())
