"""ADDA: adversarial discriminative domain adaptation."""

import math
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal

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
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.teacher import Teacher
from dafw.optim.schedules import dann_ramp


class ADDA(ManualOptimization, AdaptationMethod):
    """An encoder of the target's own learns to make features that a critic takes for the source encoder's.

    Loss: for the share ``pretrain`` of training CE(source); then, of the critic, (BCE(D(f_s), 1) + BCE(D(f_t), 0)) / 2,
    and of the target's encoder weight * BCE(D(f_t), 1). f_s, (n_s, d), are features by the encoder as it was at the end
    of the first part, frozen from then on; f_t, (n_t, d), are by the target's encoder, which starts from there. The
    label head stays as it was too. All means are over rows.

    Tzeng et al., Adversarial Discriminative Domain Adaptation, CVPR 2017, https://arxiv.org/abs/1702.05464. Read in the
    authors' code: both losses are those of the same weights, and one update follows both; SVHN -> MNIST takes 10,000
    steps of each part by Adam, at 0.001 and then 0.0002 (``adversarial_lr: 0.2``), and a critic of 500-500 units.
    tllib updates both at once too, but gives the encoder the critic's loss through a gradient reversal
    (``encoder_loss: reversed``), scaled by a ramp that comes near 2 after some thousand steps.

    The frozen encoder normalises by its running statistics. The optimiser starts the second part afresh; the schedule
    of the rate goes on. Each row passes one encoder once, and gradients are averaged over the ranks before each update.
    Targets are served by their encoder, source rows are evaluated by theirs; the copy is part of the checkpoint. With
    ``weight`` 0 the encoder keeps the weights it had, but its batch statistics go on to the target's.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); it becomes the target's.
        width: width of the critic's hidden layers (paper: 500; tllib: 1024).
        depth: number of the critic's hidden layers (paper: 2).
        critic_norm: batch normalisation in the critic (paper: none; tllib: yes).
        pretrain: share of training that is spent on the source (authors' SVHN -> MNIST: 0.5; tllib: 3 of 23 epochs).
        adversarial_lr: learning rate of the second part as a multiple of ``lr``'s.
        encoder_loss: ``inverted``, labels exchanged (paper), or ``reversed``, minus the critic's loss (tllib).
        ramp_steps: with ``reversed``, the loss is scaled by ramp_height * (2 / (1 + exp(-i / ramp_steps)) - 1), where i
            counts the steps of the second part (tllib: 1000).
        ramp_height: where that scale ends (tllib: 2).
        weight: weight of the encoder's loss.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``pretrain`` is no share, or ``norm`` is ``domain_specific``: each domain has an encoder already.
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
        width: int = 500,
        depth: int = 2,
        critic_norm: bool = False,
        pretrain: float = 0.5,
        adversarial_lr: float = 1.0,
        encoder_loss: Literal["inverted", "reversed"] = "inverted",
        ramp_steps: int = 1000,
        ramp_height: float = 2.0,
        weight: float = 1.0,
        **base,
    ) -> None:
        super().__init__(network, **base)
        if not 0 <= pretrain < 1:
            raise UserError(f"model.pretrain is a share of training, at least 0 and below 1, not {pretrain}")
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
        """Refuses an average of weights over both parts.

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
        """A resumed run goes on in the part that it was in."""
        super().on_train_start()
        self.adapts = bool(self.separated)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Enters the second part at the first step that has ``pretrain`` behind it."""
        super().on_train_batch_start(batch, batch_idx)
        if not self.adapts and self.progress >= self.pretrain:
            self.separate()
        for group in self.trainer.optimizers[0].param_groups if self.adapts else ():
            group["lr"] *= self.adversarial_lr

    def separate(self) -> None:
        """Keeps the source's encoder as it is now; the target's goes on from it."""
        self.source_encoder.copy_from(self.eval_network)
        self.trainer.optimizers[0].state.clear()
        self.separated.fill_(True)
        self.adapts = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A step of the part that training is in."""
        terms = self.adversarial_step(batch) if self.adapts else self.source_step(batch)
        self.record_step(batch, terms)
        return reduce(add, terms.values()).detach()

    def source_step(self, batch: Batch) -> Losses:
        """The network learns the source."""
        source = self.forward_rows(batch.x[: batch.num_source], batch.num_source)
        loss = self.problem.loss(source, batch.y)
        weights = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.apply_gradients((weights, self.gradients(loss, weights)))
        return {"supervised": loss}

    def adversarial_step(self, batch: Batch) -> Losses:
        """The critic learns to tell the domains apart and the target's encoder to be taken for the source's."""
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
        """What the second part trains of the network: all but its head."""
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
        """Source rows by the source's encoder, target rows by the target's."""
        if source and bool(self.separated):
            return self.forward_rows(batch.x, len(batch), self.source_encoder)
        return super().evaluate(batch, source)
