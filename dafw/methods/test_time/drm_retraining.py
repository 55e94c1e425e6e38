"""DRM's retraining: its heads, or all of its network, learn from the test stream."""

import inspect
import math
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.checkpoints import read_checkpoint
from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.losses.pseudo_labels import confident_labels
from dafw.methods.generalization.base import normalise_by_test_batch
from dafw.methods.generalization.drm import DRM, Gamma, mixture
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.methods.test_time.base import Reset, TestTimeMethod
from dafw.nn.distributed import mean_over_ranks, sum_over_ranks, world_size
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.teacher import Teacher
from dafw.optim.schedules import Schedule
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveInt


class DRMRetraining(ManualOptimization, TestTimeMethod):
    """A trained DRM follows the test stream: after each batch its heads, or its network, learn its sure predictions.

    Loss: sum over the heads of CE(head, pseudo-label), the mean over the rows whose pseudo-label has a probability of
    at least ``confidence``; features (n, d), logits (n, K) of each of S + 1 heads. A head without such rows keeps
    still. The prediction of a batch is taken before its ``steps`` steps. It is the mixture that DRM serves, see
    :class:`~dafw.methods.generalization.drm.DRM`. Normalisation is that of evaluation.

    Zhang et al., Domain-Specific Risk Minimization for Domain Generalization, KDD 2023,
    https://arxiv.org/abs/2208.08661. The authors' program (repository yfzhang114/AdaNPC) serves batches of 32, starts
    anew on each domain, and searches the four kinds of pseudo-label, a confidence of 0.1, 0.25 or 0.75, 1 or 3 steps of
    Adam and rates of 0.1, 1 and 10 times the training's, by the accuracy on the test domain: there is no one default.
    It differs (``mode: authors``): for the pseudo-labels ``uniform`` and ``mixture`` a softmax is taken of
    probabilities, which are then so even that most confidences are never reached; of several steps the prediction is
    taken before the last.

    All ranks learn from the rows of all ranks. Each step reads on the host which heads have sure rows.

    Args:
        network: that of the DRM; its head is the shared one.
        checkpoint: the DRM: a checkpoint, or the directory of a run.
        num_sources: number S of sources (the command line fills it in from the datamodule).
        gamma: as the DRM has it.
        mode: as the DRM has it; ``authors`` for what their program does.
        retrain: what learns from the stream: the ``heads`` (DRM) or the whole ``network`` (DRMFull).
        labels: whose predictions are pseudo-labels: each head's ``own``, the ``shared`` head's, those of the
            ``uniform`` mean of all heads or of the served ``mixture``.
        confidence: least probability of a pseudo-label that counts; above 1 nothing does.
        steps: steps on each batch.
        test_statistics: what batch normalisation normalises a batch by: the ``running`` statistics or those of the
            ``batch``, in one process.
        reset: see the base; each target starts from the trained DRM.
        optimizer: see the base (paper: Adam).
        schedule: see the base; constant if ``None``.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Raises:
        UserError: for values out of range, or a checkpoint of another DRM; when training starts, for
            ``test_statistics: batch`` on several ranks, or precision ``16-mixed``.
    """

    starts_with = DRM
    control: ClassVar[dict[str, Any]] = {"confidence": 2.0}
    search_space: ClassVar[dict[str, Any]] = {"confidence": [0.1, 0.25, 0.75], "steps": [1, 3], "lr": (1e-5, 1e-1)}
    host_reads: ClassVar[int] = 1

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        checkpoint: str,
        num_sources: int,
        gamma: Gamma = 1.0,
        mode: Literal["paper", "authors"] = "paper",
        retrain: Literal["heads", "network"] = "heads",
        labels: Literal["own", "shared", "uniform", "mixture"] = "mixture",
        confidence: NonNegativeFloat = 0.75,
        steps: PositiveInt = 1,
        test_statistics: Literal["running", "batch"] = "running",
        reset: Reset = "shift",
        optimizer: str = "adam",
        schedule: Schedule | None = None,
        **base,
    ) -> None:
        super().__init__(
            network,
            checkpoint=checkpoint,
            statistics="running",
            statistics_momentum=0.1,
            target_weight=0.1,
            learns="network",
            reset=reset,
            optimizer=optimizer,
            schedule=schedule,
            **base,
        )
        if self.weight_average is not None:
            raise UserError("DRMRetraining serves the weights that learn: leave out model.ema_decay")
        self.gamma, self.mode = gamma, choose("mode", mode, ("paper", "authors"))
        self.retrain = choose("retrain", retrain, ("heads", "network"))
        self.labels = choose("labels", labels, ("own", "shared", "uniform", "mixture"))
        self.confidence, self.steps, self.updates_per_batch = confidence, steps, steps
        self.heads = nn.ModuleList(network.make_head(self.num_classes) for _ in range(num_sources)).to(network.shift)
        if self.started_from is not None:
            self._fill_heads(self.started_from[1])
        self.start_heads = Teacher(self.heads, 1.0)
        self.test_statistics = choose("test_statistics", test_statistics, ("running", "batch"))
        reasons = [normalise_by_test_batch(self)] if test_statistics == "batch" else []
        reasons.append("after each batch of the test split the model is retrained on it")
        self.transductive_reason = "; ".join(reasons)
        self.eval()

    def _fill_heads(self, path: Path) -> None:
        """Takes over the sources' own heads of a DRM, as they are evaluated."""
        content = read_checkpoint(path)
        given, defaults = content["dafw"]["method"]["init_args"], inspect.signature(DRM.__init__).parameters
        held = {key: given.get(key, defaults[key].default) for key in ("gamma", "mode", "weight", "select")}
        for key in ("gamma", "mode"):
            if held[key] != getattr(self, key):
                raise UserError(
                    f"model.{key} is {getattr(self, key)}, but {held[key]} in the model of {path} (model.checkpoint)"
                )
        if held["select"] != "entropy":
            raise UserError(
                f"the DRM of {path} (model.checkpoint) has select {held['select']}, but the retraining mixes heads by "
                "their entropies: train one with model.select entropy"
            )
        if not held["weight"]:
            raise UserError(f"the DRM of {path} (model.checkpoint) has weight 0: its sources' own heads never learnt")
        state: dict[str, Tensor] = content["state_dict"]
        averaged = any(key.startswith("average_heads.") for key in state)
        prefix = "average_heads.module." if averaged else "heads."
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        trained_for = len({key.partition(".")[0] for key in found})
        if trained_for != len(self.heads):
            raise UserError(
                f"the DRM of {path} (model.checkpoint) has heads of {trained_for} sources, but the data names "
                f"{len(self.heads)}"
            )
        self.heads.load_state_dict(found)

    def setup(self, stage: str) -> None:
        """Refuses retraining where it would not be what one process does."""
        super().setup(stage)
        if stage == "fit" and self.test_statistics == "batch" and self.trainer.world_size > 1:
            raise UserError("model.test_statistics batch takes the statistics of one process: give trainer.devices 1")

    # ---- what is served

    def forward(self, x: Any) -> Outputs:
        """What the model predicts as it is now: images (N, C, H, W) -> outputs."""
        return self._mix(super().forward(x), self.heads)

    def present_outputs(self, batch: Batch) -> Outputs:
        """See the base; the mixture of all heads."""
        return self._mix(super().present_outputs(batch), self.heads)

    def start_outputs(self, batch: Batch) -> Outputs:
        """See the base; the mixture of all heads."""
        return self._mix(super().start_outputs(batch), self.start_heads.module)

    def _mix(self, outputs: Outputs, heads: nn.Module) -> Outputs:
        logits = torch.stack([*(head(outputs.features) for head in heads.children()), outputs.logits])
        return replace(outputs, logits=mixture(logits, self.gamma, self.mode))

    # ---- what is learned

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The heads' parameters, or those of the whole model."""
        if self.retrain == "network":
            return super().parameter_groups()
        return [
            {"params": [*trained_parameters(self.heads), *trained_parameters(self.network.label_head())], "lr": self.lr}
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Serves a batch, and learns from it."""
        served, losses = [], []
        self.rows_used = torch.zeros_like(batch.index, dtype=torch.bool)
        for step in range(self.steps):
            torch.clear_autocast_cache()  # of weights that have changed, or were cast where no gradient was asked for
            if not step or self.retrain == "network":
                with torch.set_grad_enabled(self.retrain == "network"):
                    outputs: Outputs = self.forward_rows(batch.x, 0, sizes=batch.sizes)
            logits = torch.stack([head(outputs.features) for head in (*self.heads, self.network.label_head())])
            served.append(mixture(logits.detach(), self.gamma, self.mode))
            losses.append(self.learn(logits, served[-1]))
            self.rows_used = self.rows_used | self.sure_rows
        self.keep(batch, replace(outputs, logits=served[-1 if self.mode == "authors" else 0]))
        later = {f"pseudo_{step}": loss for step, loss in enumerate(losses) if step}
        self.record_step(batch, {"pseudo": losses[0]}, later)

    def learn(self, logits: Tensor, mixed: Tensor) -> Tensor:
        """One step of the optimiser, if any row is sure.

        Args:
            logits: (H, n, K) of the heads, the shared one last.
            mixed: (n, K) logarithms of the served probabilities.

        Returns:
            The loss, a scalar without a gradient.
        """
        terms = self.pseudo_losses(logits, mixed)
        if not terms:
            return mixed.new_zeros(())
        loss = reduce(add, terms)
        optimizer: Any = self.optimizers()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        moved = [(parameter, g) for parameter, g in zip(parameters, gradients, strict=True) if g is not None]
        self.apply_gradients(([parameter for parameter, _ in moved], mean_over_ranks([g for _, g in moved])))
        return loss.detach()

    def pseudo_losses(self, logits: Tensor, mixed: Tensor) -> list[Tensor]:
        """The losses of those heads that have sure rows on any rank. Their mean over the ranks is that of all rows.

        Args:
            logits: see :meth:`learn`.
            mixed: see :meth:`learn`.
        """
        log_p = full_precision(logits.detach()).log_softmax(-1)
        if self.labels == "own":
            teachers = list(log_p)
        else:
            uniform = log_p.logsumexp(0) - math.log(len(log_p))
            teacher = {"shared": log_p[-1], "uniform": uniform, "mixture": mixed}[self.labels]
            if self.mode == "authors" and self.labels != "shared":
                teacher = teacher.exp()
            teachers = [teacher] * len(logits)
        chosen = [confident_labels(teacher, self.confidence) for teacher in teachers]
        self.sure_rows = torch.stack([sure for _, sure in chosen]).any(0)
        counts: list[float] = sum_over_ranks(torch.stack([sure.sum() for _, sure in chosen]).to(log_p)).tolist()
        return [
            torch.where(sure, F.cross_entropy(full_precision(head), classes, reduction="none"), 0.0).sum()
            * (world_size() / count)
            for head, (classes, sure), count in zip(logits, chosen, counts, strict=True)
            if count
        ]
