"""DomainPenalisation: sources with a large loss in the last epoch weigh more in the next one."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import choose
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.distributed import mean_over_ranks
from dafw.problems import NetworkBase
from dafw.ranges import NonNegativeFloat, PositiveInt


class DomainPenalisation(GeneralizationMethod):
    """Weighs the images of each source by the source's mean loss in the epoch before.

    Loss: mean over images j of w_d(j) L_j, where L_j is the detector's loss of image j, of outputs for images
    (n, C, H, W), and d(j) its source. All w are 1 in the first epoch. After each epoch w = S * softmax(beta * L_1, ...,
    beta * L_S), where L_i is the mean loss of source i in that epoch and S the number of sources. No gradient flows
    into w. The losses of all images come from one pass.

    Domain penalisation for improved Out-of-Distribution Generalisation, 2024, https://arxiv.org/abs/2408.01746. There
    is no public code. The abstract and two summaries of the formulas were read, not the paper itself. After the first
    epoch the paper's weights add up to 1, not to S (``total: one``). This divides the gradient by S from the second
    epoch on; with the 18 sources of its data the learning rate in effect falls to an eighteenth. Hence the default
    here, which is ours.

    Batches hold as many images of each source, so no source is ever absent from an epoch. On several ranks the weights
    follow the losses of all rows. The control (``beta`` 0) has equal weights and is ERM.

    Args:
        network: a detector; images (N, C, H, W) to outputs with a loss for each image.
        num_sources: number S of sources (the command line fills it in from the datamodule).
        beta: factor of the losses within the softmax (paper: 1). Losses of similar size give nearly equal weights;
            a larger factor tells them apart.
        total: what the weights add up to: ``sources``, S (ours); ``one``, 1 from the second epoch on (paper).
        interval: steps after which the weights change; an epoch of the trainer if null (paper: an epoch).
        base: see :class:`~dafw.methods.base.Method`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("detection",)
    control: ClassVar[dict[str, Any]] = {"beta": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"beta": (0.5, 10.0), "lr": (1e-4, 1e-1)}
    weights: Tensor
    totals: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        num_sources: int,
        beta: NonNegativeFloat = 1.0,
        total: Literal["sources", "one"] = "sources",
        interval: PositiveInt | None = None,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.beta, self.total, self.interval = beta, choose("total", total, ("sources", "one")), interval
        self.register_buffer("weights", torch.ones(num_sources))
        self.register_buffer("totals", torch.zeros(num_sources))

    def losses(self, batch: Batch) -> Losses:
        """The weighted mean of the images' losses."""
        joint = self.forward_batch(batch)
        if self.beta == 0:
            return {"supervised": self.problem.loss(joint, batch.y)}
        rows = self.problem.row_losses(joint, batch.y).view(len(self.weights), -1)
        self.follow(rows.detach().mean(1))
        return {"supervised": (self.weights[:, None] * rows).mean()}

    @torch.no_grad()
    def follow(self, risks: Tensor) -> None:
        """Adds the sources' mean losses (S,) of a step to the epoch's. The epoch's last step changes the weights."""
        (mean,) = mean_over_ranks([risks.to(self.totals.dtype)])
        totals = self.totals + mean
        steps = self.interval or int(self.trainer.num_training_batches)
        if self.steps_started % steps:
            self.propose(totals=totals)
        else:
            self.propose(weights=self.weights_of(totals / steps), totals=torch.zeros_like(totals))
        if self.logs_this_step:
            self.diagnose("weight_largest", self.weights.max())
            self.diagnose("weight_least", self.weights.min())

    def weights_of(self, risks: Tensor) -> Tensor:
        """The weights (S,) of sources with these mean losses (S,)."""
        weights = (self.beta * risks).softmax(0)
        return weights * len(risks) if self.total == "sources" else weights
