"""DANN: domain-adversarial training of neural networks."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.losses.adversarial import domain_bce
from dafw.methods.adaptation.adversarial import AdversarialMethod
from dafw.nn.mlp import mlp
from dafw.nn.reversal import reverse_gradient
from dafw.problems import NetworkBase, RowOutputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt


class DANN(AdversarialMethod):
    """Trains features from which a critic cannot tell the domain.

    Loss: CE(source) + weight * (BCE(critic(reverse(f_s)), 1) + BCE(critic(reverse(f_t)), 0)) / 2, means over the rows
    of each domain; features (n_s + n_t, d), critic scores (n_s + n_t, 1). The paper's equation adds the two means,
    hence the default ``weight`` 2; the Transfer-Learning-Library takes half of that, ``weight`` 1. The reversed
    gradient is scaled by 2 / (1 + exp(-gamma p)) - 1, where p in [0, 1] is the share of training done. The critic's own
    gradient is not scaled. For masks and boxes (a choice of dafw, the paper has classes alone), CE is the loss of that
    problem, and the features of an image are the mean of its feature map.

    Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 17 (2016), https://arxiv.org/abs/1505.07818,
    equations 9 and 14 and section 5.2.2.

    Args:
        network: images (N, C, H, W) to outputs with one vector (N, d) for each image.
        width: width of the critic's hidden layers (paper: 1024; 100 for MNIST -> MNIST-M).
        depth: number of the critic's hidden layers (paper: 2; 1 for MNIST -> MNIST-M).
        critic_norm: batch normalisation in the critic (paper: none; tllib: yes).
        critic_dropout: share of the critic's hidden units to drop; each rank of a distributed run draws its own mask
            (authors of CDAN and PADA: 0.5; tllib: none).
        gamma: steepness of the reversal's ramp (paper: 10).
        ramp_steps: ramp over this many steps instead of over the training (tllib: gamma 1, 1000 steps).
        weight: weight of the domain loss (paper: 2, tllib: 1, see above).
        base: see :class:`~dafw.methods.base.Method`. The paper's rate is 0.01 (1 + 10 p)^-0.75, momentum 0.9.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "segmentation", "detection")
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.2, 4.0), "gamma": (1.0, 20.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
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
        self.critic = mlp(network.num_features, [width] * depth, 1, norm=critic_norm, dropout=critic_dropout or 0.0)

    def domain_loss(self, outputs: RowOutputs, num_source: int) -> Tensor:
        """Binary cross-entropy of the critic: vectors (N, d) of both domains -> scalar."""
        return domain_bce(self.judge(outputs, num_source), num_source)

    def judge(self, outputs: RowOutputs, num_source: int) -> Tensor:
        """The critic's scores (N,), high for the source, for vectors (N, d); the gradient at these is reversed."""
        scores: Tensor = self.critic(reverse_gradient(outputs.vectors(), self.ramp)).squeeze(1)
        if self.logs_this_step:
            self.diagnose_critic(scores > 0, num_source)
        return scores
