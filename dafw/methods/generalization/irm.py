"""IRM: features on which one classifier is optimal in every source."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.losses.invariance import invariance_penalty
from dafw.methods.base import Losses
from dafw.methods.generalization.annealed import AnnealedPenalty
from dafw.methods.generalization.base import gather_domains
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat


class IRM(AnnealedPenalty):
    """Trains features on which scaling the logits would not help in any source.

    Loss: CE + w * mean over sources of g_even * g_odd, where g = d/ds CE(s * logits) at s = 1 over the even or the odd
    rows of one source's logits (n, K). w is ``early_weight`` before step ``anneal_steps`` and ``weight`` from it on.

    Arjovsky et al., Invariant Risk Minimization, 2019, https://arxiv.org/abs/1907.02893, IRMv1. g is computed in closed
    form, for the cross-entropy without label smoothing. The defaults are those of DomainBed (Gulrajani and Lopez-Paz,
    ICLR 2021, https://arxiv.org/abs/2007.01434, read in its code), which makes a new Adam at the jump. The penalty can
    be negative.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the penalty from the jump on (DomainBed: 100).
        annealed: see :class:`~dafw.methods.generalization.annealed.AnnealedPenalty`; its defaults are DomainBed's.
    """

    least_rows_of_domain: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "early_weight": 0.0, "reset_optimizer": False}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 1e5), "anneal_steps": (1, 2_500)}

    def __init__(self, network: Network, *, weight: NonNegativeFloat = 100.0, **annealed) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, weight=weight, **annealed)

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """The weighted penalty, over all ranks' rows."""
        gathered = gather_domains(domains, labels)
        found = [invariance_penalty(one.logits, y) for one, y in zip(*gathered, strict=True)]
        return {"invariance": self.penalty_weight * torch.stack(found).mean()}
