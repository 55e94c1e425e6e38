"""A target classification loss without target labels: predictions refined by what each class's critic says.

ParetoDA: Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137. For each of the K classes
a binary critic v_k tells the domains apart. With the domain as evidence, Bayes' rule refines the classifier's
prediction p of a target row: rho_k is proportional to p(target | x, v_k) p_k.

The paper was not at hand: ``paper``, the default, follows a summary of it; ``authors`` was read in their code.

A critic's scores are (n, K, 2) logits, target first, or (n, K), the logit of "source". ``mode="authors"`` gives what
the authors' program computes where it departs from that.
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
    """The logarithms of p(target | x, v_k) and p(source | x, v_k), each (n, K), at least in float32.

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
    """sum_k m_k log m_k - mean_i sum_k rho_ik log rho_ik with m the mean of rho: minus the mutual information.

    Args:
        refined: (n, K) logits of rho; on several ranks this rank's rows, all of which are gathered.
        mode: ``authors`` adds 1e-6 to m inside its logarithm.

    Returns:
        A scalar from -log K (each row sure of one class, all classes alike) to 0 (all rows alike).
    """
    if mode == "paper":
        return information_maximisation(refined)
    refined = full_precision(gather_rows(refined))
    marginal = refined.softmax(1).mean(0)
    return (marginal * (marginal + 1e-6).log()).sum() + mean_entropy(refined)


def class_domain_loss(
    source_scores: Tensor, target_scores: Tensor, labels: Tensor, refined: Tensor, *, mode: Mode = "paper"
) -> Tensor:
    """What the critics minimise: each learns from the rows of its class, target rows counting as far as rho says.

    mean_s -log p(source | x, v_y) + mean_t sum_k -rho_k log p(target | x, v_k), without gradient into rho.

    Args:
        source_scores: of the critics on (n_s) source rows.
        target_scores: of the critics on (n_t) target rows.
        labels: (n_s,) classes of the source rows.
        refined: (n_t, K) logits of rho, see :func:`refine`.
        mode: ``authors``: half of it, divided by K; target rows are weighted by ``refined`` itself, which may be
            negative; and all source rows train the critic of the last one's class, as their loop keeps no other.

    Returns:
        A scalar; a sum of means over rows, so the ranks' own values average to that of the whole batch.
    """
    _, source = domain_log_probabilities(source_scores)
    target, _ = domain_log_probabilities(target_scores)
    refined = refined.detach()
    if mode == "authors":
        only = source.index_select(1, gather_rows(labels)[-1:])
        return -(only.mean() + (refined * target).sum(1).mean()) / (2 * target.shape[1])
    own = source.gather(1, labels[:, None])
    return -(own.mean() + (torch.softmax(refined, 1) * target).sum(1).mean())
