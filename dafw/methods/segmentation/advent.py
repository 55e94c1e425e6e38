"""ADVENT: maps of self-information from which a critic cannot tell the domain."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.losses.maps import self_information
from dafw.methods.segmentation.adaptsegnet import AdaptSegNet


class Advent(AdaptSegNet):
    """Trains masks whose entropy, seen pixel by pixel, does not tell a critic the domain.

    Loss: that of :class:`AdaptSegNet`, whose critic sees the weighted self-information I = -p log p / log K in place of
    p = softmax(logits): CE(source) + weight * BCE(D(I_t), 1) and, for the critic D alone, (BCE(D(I_s), 1) + BCE(D(I_t),
    0)) / 2; I_s is (n_s, K, H, W) and I_t (n_t, K, H, W). All means are over places.

    Vu et al., ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation, CVPR 2019,
    https://arxiv.org/abs/1811.12833, section 3.2; the step was read in the authors' code. The authors add 1e-30
    to p in the logarithm; here the logarithm is exact.

    Args:
        network: images (N, 3, H, W) to outputs with logits (N, K, H, W).
        levels: 1, the main scores; 2, those of the auxiliary head too (authors: 2).
        gan: ``vanilla`` or ``least_squares``.
        critic_width: channels of the critic's first convolution (paper: 64).
        critic_layers: number of its convolutions (paper: 5).
        critic_lr: learning rate of the critic (paper: 1e-4).
        critic_optimizer: any timm optimiser for the critic (paper: Adam).
        critic_momentum: its momentum or beta1 (authors: 0.9).
        critic_beta2: its beta2, if it has one (authors: 0.99).
        weight: weight of the term that misleads the critic (paper: 0.001).
        auxiliary_share: share of ``weight`` for the auxiliary head (authors: 0.2, a weight of 0.0002).
        base: see :class:`~dafw.methods.base.Method`. Authors: SGD with momentum 0.9, rate 2.5e-4 (1 - p)^0.9, ten
            times that for the heads, weight decay 5e-4, one image of each domain, each passed alone.
    """

    search_space: ClassVar[dict[str, Any]] = {"weight": (1e-4, 1e-1), "critic_lr": (1e-5, 1e-3), "lr": (1e-4, 1e-1)}

    def maps(self, logits: Tensor) -> Tensor:
        """The self-information of each class, (n, K, H, W) -> (n, K, H, W)."""
        return self_information(logits)
