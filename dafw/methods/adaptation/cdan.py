"""CDAN: conditional domain-adversarial network."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.losses.adversarial import domain_bce
from dafw.losses.entropy import certainty_weights
from dafw.methods.adaptation.adversarial import AdversarialMethod
from dafw.nn.mlp import mlp
from dafw.nn.multilinear import MultilinearMap
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.reversal import reverse_gradient
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

#: Largest width of an outer product; wider ones are projected.
WIDEST = 4096


class CDAN(AdversarialMethod):
    """A DANN with a critic that sees features together with class predictions, so it can treat each class separately.

    Loss: CE(source) + weight * (mean_s w_i BCE(D(h_i), 1) + mean_t w_i BCE(D(h_i), 0)) / 2. h_i = T(f_i, p_i) joins the
    features f (n_s + n_t, d) with p = softmax(logits) (n_s + n_t, K); no gradient flows through p. T is their outer
    product, (n_s + n_t, K * d), or a random projection of it. w_i is 1, or with ``entropy`` ("CDAN+E") 1 +
    exp(-H(p_i)), without gradient, scaled so that the weights of all rows sum to their number. The gradient at the
    features is reversed and scaled by 2 / (1 + exp(-gamma p)) - 1, where p is the share of training done.

    Long et al., Conditional Adversarial Domain Adaptation, NeurIPS 2018, https://arxiv.org/abs/1705.10667. Recalled,
    not looked up: the paper projects if d * K exceeds 4096, its ramp and its rate are DANN's, and its equation adds the
    two means, hence the default ``weight`` 2. The authors' first code and the Transfer-Learning-Library (both read)
    take the mean over all rows, ``weight`` 1. The weights w follow that library. The authors' code always weighs by
    entropy, normalises the weights in each domain, and lets the reversed gradient pass through them; its critic has
    dropout and no normalisation.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        entropy: weigh rows by the certainty of their prediction (paper: CDAN+E; tllib: off by default).
        randomized: use the random projection; null: if d * K exceeds 4096 (tllib: only on demand).
        random_width: width of the random projection (tllib: 1024).
        width: width of the critic's hidden layers (tllib: 1024).
        depth: number of the critic's hidden layers (tllib: 2).
        critic_norm: batch normalisation in the critic (tllib: yes).
        critic_dropout: share of the critic's hidden units to drop; each rank of a distributed run draws its own mask
            (authors of CDAN and PADA: 0.5; tllib: none).
        gamma: steepness of the reversal's ramp.
        ramp_steps: ramp over this many steps instead of over the training (tllib: gamma 1, 1000 steps).
        weight: weight of the domain loss (paper: 2, tllib: 1, see above).
        base: see :class:`~dafw.methods.base.Method`.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.2, 4.0), "entropy": [False, True], "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        entropy: bool = False,
        randomized: bool | None = None,
        random_width: PositiveInt = 1024,
        width: PositiveInt = 1024,
        depth: NonNegativeInt = 2,
        critic_norm: bool = False,
        critic_dropout: ClosedUnitInterval | None = None,
        gamma: NonNegativeFloat = 10.0,
        ramp_steps: PositiveInt | None = None,
        weight: NonNegativeFloat = 2.0,
        **base,
    ) -> None:
        super().__init__(network, weight=weight, gamma=gamma, ramp_steps=ramp_steps, **base)
        self.entropy = entropy
        if randomized is None:
            randomized = network.num_features * self.num_classes > WIDEST
        self.join = MultilinearMap(network.num_features, self.num_classes, random_width if randomized else None)
        self.critic = mlp(self.join.out_features, [width] * depth, 1, norm=critic_norm, dropout=critic_dropout or 0.0)

    def domain_loss(self, outputs: Outputs, num_source: int) -> Tensor:
        """Binary cross-entropy of the critic, features (N, d) and logits (N, K) of both domains -> scalar."""
        logits = outputs.logits.detach()
        joined = self.join(reverse_gradient(outputs.features, self.ramp), full_precision(logits).softmax(1))
        scores = self.critic(joined).squeeze(1)
        if self.logs_this_step:
            self.diagnose_critic(scores > 0, num_source)
        return domain_bce(scores, num_source, certainty_weights(logits) if self.entropy else None)
