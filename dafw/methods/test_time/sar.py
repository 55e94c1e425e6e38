"""SAR: entropy falls on sure rows towards a flat minimum, and the model recovers when its predictions collapse."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.entropy import entropy
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.methods.test_time.base import Learns, Reset, StatisticsRule, TestTimeMethod
from dafw.methods.test_time.parts import LAST_PARTS, hold_parts
from dafw.nn.distributed import average_over_ranks, mean_weights
from dafw.nn.network import Network
from dafw.optim.sam import ascent, perturbed
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat


class SAR(ManualOptimization, TestTimeMethod):
    """Scale and shift of the normalisations, the last part of the network left out, learn sharpness-aware.

    Loss: the mean entropy H of the rows that count, logits (n, K), twice. The first pass counts the rows with
    H < E = ``margin`` ln K. Its gradient g moves the parameters by ``rho`` g / ||g||. The second pass there counts
    those of these rows whose H is below E still. Its gradient makes the step, from the weights before the move. If it
    counts no row of any rank, there is no step. A moving mean of the second loss, 0.9 of itself and 0.1 of the new one,
    begins with the first; once it is below ``recover_below``, all returns to the start before the next step. Means are
    over the rows of all ranks. Served are the logits of the first pass. Each step reads on the host whether a row
    counts and whether to recover.

    Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023, https://arxiv.org/abs/2302.12400.
    Three faults of the authors' code are not here: their recovery keeps the optimiser's momentum; it puts the old
    moving mean back, so that it recovers again; without a row that counts, the momentum moves the weights still.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        margin: of the entropy, as a share of ln K (paper: 0.4).
        rho: length of the move uphill (paper: 0.05).
        recover_below: the moving mean at which all returns to the start (paper, for 1000 classes: 0.2); 0 for never.
        skip: names of parts of the backbone that keep scale and shift (authors' code: the last stage of a ResNet, the
            last three blocks and the last normalisation of a ViT-B, by the names that timm gives them).
        reset: see the base; ``own`` is the rule above.
        optimizer: see :class:`~dafw.methods.base.Method` (paper: SGD with momentum 0.9).
        lr: learning rate (paper: 0.00025 for ResNet-50 with batches of 64, 0.001 for ViT-B).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Raises:
        UserError: if nothing is left that learns, or a moving average of the weights is asked for.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "rho": (0.01, 0.2), "recover_below": [0.0, 0.1, 0.2]}
    default_statistics: ClassVar[StatisticsRule] = "batch"
    default_learns: ClassVar[Learns] = "norm"
    backbone_passes: ClassVar[int] = 2
    host_reads: ClassVar[int] = 2
    own_reset: ClassVar[str] = "when the moving mean of its loss is too low"
    moving_loss: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        margin: NonNegativeFloat = 0.4,
        rho: NonNegativeFloat = 0.05,
        recover_below: NonNegativeFloat = 0.2,
        skip: Sequence[str] = LAST_PARTS,
        reset: Reset = "own",
        optimizer: str = "momentum",
        lr: float = 2.5e-4,
        **base,
    ) -> None:
        super().__init__(network, reset=reset, optimizer=optimizer, lr=lr, **base)
        if self.weight_average is not None:
            raise UserError("SAR serves the weights that learn: leave out model.ema_decay")
        self.margin, self.rho, self.recover_below = margin * math.log(self.num_classes), rho, recover_below
        hold_parts(self, skip)
        self.register_buffer("moving_loss", torch.tensor(-1.0))  # of no loss yet

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Serves the batch, and learns from it."""
        if self.learns == "nothing":
            self.record_step(batch, self.losses(batch))
            return
        parameters = trained_parameters(self.network)
        outputs: Outputs = self.forward_rows(batch.x, 0, sizes=batch.sizes)
        served, first = self.serve(outputs, batch).detach(), entropy(outputs.logits)
        sure = first.detach() < self.margin
        shares, _ = mean_weights(sure, first.dtype)
        uphill = ascent(self.gradients((shares * first).sum(), parameters), self.rho)
        with perturbed(parameters, uphill), self.layout.untracked():
            second = entropy(self.forward_rows(batch.x, 0, self.network, batch.sizes).logits)
            loss = (self.used(sure & (second.detach() < self.margin)) * second).sum()
            gradients = self.gradients(loss, parameters)
        self.keep(batch, replace(outputs, logits=served))
        if self.moves:
            self.apply_gradients((parameters, gradients))
        self.record_step(batch, {"entropy": loss})
        self.follow(loss.detach())

    def follow(self, loss: Tensor) -> None:
        """Takes a loss into the moving mean, if rows counted."""
        loss = loss.to(self.moving_loss, copy=True)
        average_over_ranks(loss)
        if self.moves:
            later = torch.lerp(self.moving_loss, loss, 0.1)
            self.moving_loss.copy_(torch.where(self.moving_loss >= 0, later, loss))

    def restart_due(self) -> bool:
        """See the class."""
        return bool((self.moving_loss >= 0) & (self.moving_loss < self.recover_below))
