"""GroupDRO: weighs the sources by their losses."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.distributed import mean_over_ranks
from dafw.problems import NetworkBase
from dafw.ranges import NonNegativeFloat


class GroupDRO(GeneralizationMethod):
    """Minimises the loss of the worst source, with weights that grow where the loss is large.

    Loss: sum_m q_m L_m, where L_m is the CE of source m's logits (n, K). Each step first sets q_m <- q_m exp(rate *
    L_m), then q <- q / sum q. No gradient flows into q (S,). The loss is written as the mean of all L_m, the supervised
    term, plus sum_m (q_m - 1 / S) L_m.

    Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020,
    https://arxiv.org/abs/1911.08731, algorithm 1, with the sources as groups. The rate is DomainBed's (Gulrajani and
    Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434, read in its code). On several ranks q follows the losses of
    all rows. DomainBed makes one pass per source. This differs from one pass of all sources if the network normalises
    by batch statistics. For boxes (a choice of dafw) L_m is the detector's loss of source m's images, from the outputs
    of that one pass and from the anchors and regions of the supervised term.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K), or a detector.
        num_sources: number S of sources (the command line fills it in from the datamodule).
        rate: step size of the weights' logarithms (DomainBed: 0.01); with 0 the weights stay equal.
        base: see :class:`~dafw.methods.base.Method`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "detection")
    control: ClassVar[dict[str, Any]] = {"rate": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"rate": (1e-3, 1e-1)}
    q: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self, network: NetworkBase, *, num_sources: int, rate: NonNegativeFloat = 0.01, **base
    ) -> None:
        super().__init__(network, **base)
        self.rate = rate
        self.register_buffer("q", torch.ones(num_sources))

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss of all rows, and what the weights add to it; without a rate they add nothing."""
        joint = self.forward_batch(batch)
        if self.rate == 0:
            return {"supervised": self.problem.loss(joint, batch.y)}
        supervised, risks = self.problem.part_losses(joint, batch.y, self.num_domains(batch))
        return {"supervised": supervised, "reweighted": self.excess(risks)}

    def excess(self, risks: Tensor) -> Tensor:
        """By how much the weighted sum of the sources' losses (S,) is above their mean. The weights change first."""
        q = self.reweighted(risks)
        self.propose(q=q)
        return ((q - 1 / len(risks)) * risks).sum()

    @torch.no_grad()
    def reweighted(self, risks: Tensor) -> Tensor:
        """The weights (S,) after those of the sources with large losses, risks (S,), were raised."""
        (mean,) = mean_over_ranks([risks])
        raised = self.q * (self.rate * mean).exp()
        return raised / raised.sum()
