"""Meta-DMoE on the stream: one step on the first batch of each domain towards what all experts see."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.checkpoints import read_checkpoint
from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.methods.generalization.meta_dmoe import Aggregation, MetaDMoE, expert_layout, homes, make_experts
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.methods.test_time.base import Learns, Reset, TestTimeMethod
from dafw.nn.aggregator import ExpertAggregator
from dafw.nn.buffers import Flag
from dafw.nn.network import Network
from dafw.ranges import NonNegativeFloat, PositiveFloat, PositiveInt


class MetaDMoEAdaptation(ManualOptimization, TestTimeMethod):
    """The student of a Meta-DMoE makes one step on the first batch of each domain, and serves all of it.

    Loss: mean (f(x) - t)^2 over the features (n, d) of the first batch: f is the student's, and t what the aggregator
    makes of the features of all experts. No gradient flows through t. After the step the student serves that batch and
    the rest of the domain, logits (n, K). ``reset`` is ``shift`` here: the student returns to the start at each shift,
    and learns from the batch that follows. Where it never returns, it makes one step in the whole stream.

    Zhong et al., Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts, NeurIPS 2022,
    https://arxiv.org/abs/2210.03885. It starts from a run of :class:`~dafw.methods.generalization.meta_dmoe.MetaDMoE`.
    In the authors' code the batch has as many rows as a support set, and the step is plain gradient descent with the
    inner rate of the training. Its control, ``learns: nothing``, is the student without a step. Batch normalisation
    normalises by running statistics. Means are over the rows of all ranks.

    Args:
        network: see the base.
        checkpoint: run or checkpoint of a Meta-DMoE.
        num_sources: number of sources of that run (the command line fills it in from the datamodule).
        experts: as in that run.
        aggregation: as in that run.
        heads: as in that run.
        optimizer: see the base (paper: gradient descent).
        momentum: see the base.
        lr: rate of the step; the ``inner_lr`` of that run if ``None``.
        reset: see above.
        learns: see the base; ``head`` is refused, since the loss does not depend on it.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Raises:
        UserError: see the base; for ``ema_decay``, or if the run had other arguments than these.
    """

    starts_with = MetaDMoE
    first_served_reason = "the step on the first batch of a domain comes before it is served"
    backbone_passes: ClassVar[int | None] = None
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        checkpoint: str,
        num_sources: int,
        experts: PositiveInt | None = None,
        aggregation: Aggregation = "attention",
        heads: PositiveInt = 16,
        optimizer: str = "momentum",
        momentum: NonNegativeFloat = 0.0,
        lr: PositiveFloat | None = None,
        reset: Reset = "shift",
        learns: Learns | None = None,
        **base,
    ) -> None:
        if learns == "head":
            raise UserError(
                "MetaDMoEAdaptation learns from features, which the label head has no part in: give "
                "another model.learns than head"
            )
        super().__init__(
            network,
            checkpoint=checkpoint,
            optimizer=optimizer,
            momentum=momentum,
            lr=3e-4 if lr is None else lr,
            reset=reset,
            learns=learns,
            **base,
        )
        if self.weight_average is not None:
            raise UserError("MetaDMoEAdaptation serves the weights that learn: leave out model.ema_decay")
        self.updates_per_batch = 0
        self.aggregation, self.heads = choose("aggregation", aggregation, ("attention", "mean")), heads
        self.homes = homes(num_sources, experts)
        self.experts = make_experts(network, max(self.homes) + 1).requires_grad_(False)
        self.aggregator = ExpertAggregator(
            network.num_features, self.num_classes, heads=heads, attends=aggregation == "attention"
        ).to(network.shift)
        self.aggregator.requires_grad_(False)
        self.expert_layout = expert_layout(self.experts, self.norm)
        self.adapted = Flag()
        if self.started_from is not None:
            inner_lr = self._fill_experts(self.started_from[1])
            self.lr = inner_lr if lr is None else lr
        self.eval()

    def _fill_experts(self, path: Path) -> float:
        """Takes over experts and aggregator of a Meta-DMoE, and returns its inner rate."""
        content = read_checkpoint(path)
        given, defaults = content["dafw"]["method"]["init_args"], inspect.signature(MetaDMoE.__init__).parameters
        held = {key: given.get(key, defaults[key].default) for key in ("aggregation", "heads", "inner_lr", "pretrain")}
        theirs = homes(given["num_sources"], given.get("experts"))
        for key in ("aggregation", "heads"):
            if held[key] != getattr(self, key):
                raise UserError(
                    f"model.{key} is {getattr(self, key)}, but {held[key]} in the model of {path} (model.checkpoint)"
                )
        if max(theirs) != max(self.homes):
            raise UserError(
                f"the MetaDMoE of {path} (model.checkpoint) has {max(theirs) + 1} experts, but model.experts and the "
                f"sources of the data make {max(self.homes) + 1}"
            )
        if held["pretrain"] == 1:
            raise UserError(f"the MetaDMoE of {path} (model.checkpoint) has pretrain 1: it never learnt to make a step")
        state: dict[str, Tensor] = content["state_dict"]
        for name, module in (("experts.", self.experts), ("aggregator.", self.aggregator)):
            module.load_state_dict({key.removeprefix(name): one for key, one in state.items() if key.startswith(name)})
        return float(held["inner_lr"])

    def setup(self, stage: str) -> None:
        """As the base, which gives the experts a layout of their own on several ranks."""
        super().setup(stage)
        self.expert_layout = expert_layout(self.experts, self.norm)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Makes the step if it is due, and serves the batch."""
        self.moves = self.learns != "nothing" and not self.adapted.value
        self.rows_used = torch.full_like(batch.index, self.moves, dtype=torch.bool)
        loss = self.learn(batch) if self.moves else torch.zeros((), device=self.device)
        torch.clear_autocast_cache()  # of weights that have changed
        with torch.no_grad():
            self.keep(batch, self.present_outputs(batch))
        self.record_step(batch, {"distance": loss})

    def learn(self, batch: Batch) -> Tensor:
        """The step of the student. It returns the loss before it, a scalar without a gradient."""
        how: dict[str, Any] = {"num_source": 0, "rows": len(batch), "sizes": batch.sizes}
        how["stream"] = self.stream_statistics
        if batch.sizes is not None:
            how["canvas"] = tuple(batch.x.shape[-2:])
        inputs = (batch.x,) if batch.sizes is None else (batch.x, batch.sizes)
        with torch.no_grad(), self.expert_layout.temporarily(**how):
            goal = self.aggregator(torch.stack([expert(*inputs).features for expert in self.experts], 1))
        torch.clear_autocast_cache()
        loss = F.mse_loss(self.forward_rows(batch.x, 0, sizes=batch.sizes).features, goal)
        moved = trained_parameters(self.network)
        self.apply_gradients((moved, self.gradients(loss, moved)))
        self.adapted.set()
        return loss.detach()
