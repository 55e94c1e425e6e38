"""V-REx: the same loss in every source."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.methods.base import Losses
from dafw.methods.generalization.annealed import AnnealedPenalty
from dafw.nn.distributed import sum_over_ranks, world_size
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat


class VREx(AnnealedPenalty):
    """Trains for equal losses of all sources.

    Loss: CE + w * mean over sources of (L_m - mean L)^2, where L_m is the CE of one source's logits (n, K). w is
    ``early_weight`` before step ``anneal_steps`` and ``weight`` from it on.

    Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, ICML 2021,
    https://arxiv.org/abs/2003.00688, with the sources' mean instead of their sum. The defaults are those of DomainBed
    (Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434, read in its code), which makes a new Adam at
    the jump.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the variance from the jump on (DomainBed: 10).
        annealed: see :class:`~dafw.methods.generalization.annealed.AnnealedPenalty`; its defaults are DomainBed's.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "early_weight": 0.0, "reset_optimizer": False}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 1e5), "anneal_steps": (1, 2_500)}

    def __init__(self, network: Network, *, weight: NonNegativeFloat = 10.0, **annealed) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, weight=weight, **annealed)

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """The weighted variance of the sources' losses, each over all ranks' rows."""
        risks = torch.stack([self.problem.loss(one, y) for one, y in zip(domains, labels, strict=True)])
        risks = sum_over_ranks(risks) / world_size()
        return {"variance": self.penalty_weight * (risks - risks.mean()).square().mean()}
