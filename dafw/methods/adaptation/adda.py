"""ADDA: adversarial discriminative domain adaptation."""

import math
from functools import reduce
from operator import add
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.callbacks import averaging
from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.adversarial import domain_bce
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.teacher import Teacher
from dafw.optim.schedules import dann_ramp
from dafw.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Range


class ADDA(ManualOptimization, AdaptationMethod):
    """Trains a separate encoder for the target until a critic takes its features for those of the source encoder.

    Loss: CE(source) for the share ``pretrain`` of training. Then the critic's loss is (BCE(D(f_s), 1) + BCE(D(f_t), 0))
    / 2 and the target encoder's loss is weight * BCE(D(f_t), 1). The features f_s, (n_s, d), come from the encoder at
    the end of the first part, which is frozen from then on. The features f_t, (n_t, d), come from the target's encoder,
    which starts from the same weights. The label head stays as it was too. All means are over rows.

    Tzeng et al., Adversarial Discriminative Domain Adaptation, CVPR 2017, https://arxiv.org/abs/1702.05464. Read in the
    authors' code: the critic's loss is a mean over all rows, while the paper's equation, as recalled, adds the two
    means; both losses are computed at the same weights, and one update follows both. SVHN -> MNIST takes 10,000 steps
    of each part with Adam, at 0.001 and then 0.0002 (``adversarial_lr: 0.2``), and a critic of 500-500 units. tllib
    updates both at once too, but gives the encoder the critic's loss through a gradient reversal (``encoder_loss:
    reversed``), scaled by a ramp that comes near 2 after some thousand steps.

    The frozen encoder normalises with its running statistics. The optimiser starts the second part with an empty state;
    the schedule of the rate goes on. Each row passes one encoder once. Gradients are averaged over the ranks before
    each update. Target rows are evaluated with the target's encoder, source rows with the source's. The copy is part of
    the checkpoint. With ``weight`` 0 the encoder keeps its weights, but its batch statistics still move to the
    target's.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); it becomes the target's encoder.
        width: width of the critic's hidden layers (paper: 500; tllib: 1024).
        depth: number of the critic's hidden layers (paper: 2).
        critic_norm: batch normalisation in the critic (paper: none; tllib: yes).
        pretrain: share of training on the source alone (authors' SVHN -> MNIST: 0.5; tllib: 3 of 23 epochs).
        adversarial_lr: learning rate of the second part as a multiple of ``lr``.
        encoder_loss: ``inverted``: BCE with exchanged labels (paper); ``reversed``: minus the critic's loss (tllib).
        ramp_steps: with ``reversed``, the loss is scaled by ramp_height * (2 / (1 + exp(-i / ramp_steps)) - 1), where i
            counts the steps of the second part (tllib: 1000).
        ramp_height: final value of that scale (tllib: 2).
        weight: weight of the encoder's loss.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``pretrain`` is not in [0, 1), or ``norm`` is ``domain_specific`` (each domain already has its own
            encoder).
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    control_difference_reason: ClassVar[str] = (
        "it trains the network on the source alone, and only until the critic starts"
    )
    search_space: ClassVar[dict[str, Any]] = {"pretrain": (0.1, 0.7), "adversarial_lr": (0.03, 1.0), "lr": (1e-3, 1e-1)}
    separated: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        width: PositiveInt = 500,
        depth: NonNegativeInt = 2,
        critic_norm: bool = False,
        pretrain: Annotated[float, Range("is a share of training, at least 0 and below 1", 0, 1, below=True)] = 0.5,
        adversarial_lr: NonNegativeFloat = 1.0,
        encoder_loss: Literal["inverted", "reversed"] = "inverted",
        ramp_steps: PositiveInt = 1000,
        ramp_height: NonNegativeFloat = 2.0,
        weight: NonNegativeFloat = 1.0,
        **base,
    ) -> None:
        super().__init__(network, **base)
        if self.norm == "domain_specific":
            raise UserError("ADDA has an encoder for each domain: model.norm cannot be domain_specific")
        self.pretrain, self.adversarial_lr, self.weight = pretrain, adversarial_lr, weight
        self.encoder_loss, self.ramp_steps, self.ramp_height = encoder_loss, ramp_steps, ramp_height
        self.critic = mlp(network.num_features, [width] * depth, 1, norm=critic_norm)
        self.source_encoder = Teacher(network, decay=1.0)
        self.register_buffer("separated", torch.tensor(False))
        self.adapts = False

    # ---- the two parts of training

    def setup(self, stage: str) -> None:
        """Refuses a callback that would average the weights over both parts.

        Raises:
            UserError: if a callback averages the weights.
        """
        super().setup(stage)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit" and (names := averaging(callbacks)):
            raise UserError(
                f"ADDA trains the source's and then the target's encoder, whose weights {names[0]} cannot average"
            )

    def on_train_start(self) -> None:
        """Restores the part of training in which a resumed run was."""
        super().on_train_start()
        self.adapts = bool(self.separated)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Enters the second part at the first step after the share ``pretrain`` of training."""
        super().on_train_batch_start(batch, batch_idx)
        if not self.adapts and self.progress >= self.pretrain:
            self.separate()
        for group in self.trainer.optimizers[0].param_groups if self.adapts else ():
            group["lr"] *= self.adversarial_lr

    def separate(self) -> None:
        """Freezes a copy of the encoder for the source; the target's encoder continues from it."""
        self.source_encoder.copy_from(self.eval_network)
        self.trainer.optimizers[0].state.clear()
        self.separated.fill_(True)
        self.adapts = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A step of the current part of training."""
        terms = self.adversarial_step(batch) if self.adapts else self.source_step(batch)
        self.record_step(batch, terms)
        return reduce(add, terms.values()).detach()

    def source_step(self, batch: Batch) -> Losses:
        """Trains the network on the source."""
        source = self.forward_rows(batch.x[: batch.num_source], batch.num_source)
        loss = self.problem.loss(source, batch.y)
        weights = trained_parameters(self.network)
        self.apply_gradients((weights, self.gradients(loss, weights)))
        return {"supervised": loss}

    def adversarial_step(self, batch: Batch) -> Losses:
        """Trains the critic to tell the domains apart, and the target's encoder to look like the source's."""
        n = batch.num_source
        with torch.no_grad():
            source = self.forward_rows(batch.x[:n], n, self.source_encoder)
        target = self.forward_rows(batch.x[n:], 0)
        scores = self.critic(torch.cat([source.features, target.features])).squeeze(1)
        domain = domain_bce(scores, n)
        encoder = self.weight * self.deceive(scores[n:], domain)
        critic = list(self.critic.parameters())
        parts = [(critic, self.gradients(domain, critic, retain_graph=True))]
        if self.weight:
            parts.append((self.encoder, self.gradients(encoder, self.encoder)))
        self.apply_gradients(*parts)
        if self.logs_this_step:
            self.diagnose("critic_accuracy_source", (scores[:n] > 0).float().mean())
            self.diagnose("critic_accuracy_target", (scores[n:] <= 0).float().mean())
        return {"domain": domain, "encoder": encoder}

    @property
    def encoder(self) -> list[nn.Parameter]:
        """The parameters of the network that the second part trains: all but its head."""
        assert self.network.head is not None
        head = {id(parameter) for parameter in self.network.head.parameters()}
        return [p for p in self.network.parameters() if p.requires_grad and id(p) not in head]

    def deceive(self, scores: Tensor, domain: Tensor) -> Tensor:
        """The encoder's loss, from the critic's scores (n_t,) of its rows and the critic's own loss."""
        if self.encoder_loss == "inverted":
            return F.softplus(-full_precision(scores)).mean()
        steps = max(0, self.step - math.ceil(self.pretrain * self.steps_planned))
        return -self.ramp_height * dann_ramp(steps / self.ramp_steps, 1.0) * domain

    # ---- serving

    def evaluate(self, batch: Batch, source: bool) -> Any:
        """Source rows with the source's encoder, target rows with the target's."""
        if source and bool(self.separated):
            return self.forward_rows(batch.x, len(batch), self.source_encoder)
        return super().evaluate(batch, source)
