"""A small model that learns a large model's predictions of selected samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.entropy import entropy
from dafw.nn.precision import full_precision


def sureness(entropies: Tensor, most: float | None) -> Tensor:
    """exp(``most`` - H), which is 1 at ``most`` nats and larger below; without a gradient. 1 if ``most`` is ``None``.

    Args:
        entropies: (n,), H of each row in nats.
        most: E_max.
    """
    return torch.ones_like(entropies) if most is None else (most - entropies.detach()).exp()


def selective_distillation(
    edge: Tensor,
    cloud: Tensor,
    *,
    most: float | None,
    entropy_weight: float = 3.0,
    distillation_weight: float = 3.0,
    label_weight: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """A mean(w_e H_e) + b mean(w_c T^2 KL(c || e)) + g mean(w_c CE(e, argmax c)).

    e and c are the predictions of the edge's and the cloud's model, at temperature T in KL alone. w_e and w_c are the
    :func:`sureness` of their rows. Chen et al., Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via
    Selective Entropy Distillation (CEMA), ICLR 2024, https://arxiv.org/abs/2402.17316.

    Args:
        edge: logits (n, K).
        cloud: logits (n, K), taken without a gradient.
        most: E_max of both weights; ``None`` weighs all rows by 1.
        entropy_weight: a (paper: 3).
        distillation_weight: b (paper: 3).
        label_weight: g (paper: 1).
        temperature: T (paper: 1).

    Returns:
        A scalar.
    """
    edge, cloud = full_precision(edge), full_precision(cloud.detach())
    own = entropy(edge)
    labels = (cloud / temperature).log_softmax(1)
    divergence = (labels.exp() * (labels - (edge / temperature).log_softmax(1))).sum(1) * temperature**2
    sure = sureness(entropy(cloud), most)
    named = F.cross_entropy(edge, cloud.argmax(1), reduction="none")
    taught = sure * (distillation_weight * divergence + label_weight * named)
    return (entropy_weight * sureness(own, most) * own + taught).mean()
