"""DANN and CDANN in DomainBed's form: a critic of the sources, updated in turns with the network."""

from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.distributed import sum_over_ranks, world_size
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt, RightOpenUnitInterval


class DomainBedDANN(ManualOptimization, GeneralizationMethod):
    """Trains features from which a critic cannot tell their source: "DANN" in DomainBed's tables.

    Loss: the critic's is L_D = CE(critic(z), source) + penalty * mean_i |d CE_i / d z_i|^2, with features z (n, d) and
    scores (n, S). The network's is CE(logits, labels) - weight * L_D. One of 1 + ``critic_steps`` batches updates the
    network: the last but one (the first of two). The others update the critic. So no gradient is reversed, and the
    network makes 1 / (1 + ``critic_steps``) of the updates that ERM makes in as many batches.

    Ganin et al., JMLR 17 (2016), https://arxiv.org/abs/1505.07818, in the form in which Gulrajani and Lopez-Paz make
    several sources invariant to each other, In Search of Lost Domain Generalization, ICLR 2021,
    https://arxiv.org/abs/2007.01434. Read in DomainBed's code. The defaults are its own except for the optimiser, which
    is Adam at a constant rate of 5e-5 (small images: 1e-3) for both there, with ``betas``. The class is not called
    DANN, since that is the adaptation method; a table's row has the name that its ``name`` gives.

    Both kinds of updates are steps of the one optimiser. Parameters that an update does not move have no gradient and
    keep their state. Only the network's updates enter the average of ``ema_decay``. A batch makes one pass through the
    backbone. In the critic's updates this pass has no gradients, but it does enter the running statistics. Gradients
    are averaged over the ranks. With ``weight`` 0 every batch updates the network, and the critic stays as it is: ERM.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        num_sources: number S of sources (the command line fills it in from the datamodule).
        weight: weight of the critic's loss in the network's (DomainBed: 1).
        penalty: weight of the critic's squared gradient with respect to the features (DomainBed: 0).
        critic_steps: updates of the critic for each update of the network (DomainBed: 1).
        width: width of the critic's hidden layers (DomainBed: 256).
        depth: number of the critic's hidden layers (DomainBed: 2, whose ``mlp_depth`` 3 counts the output too).
        dropout: share of the critic's hidden units to drop (DomainBed: 0); each rank draws its own mask.
        critic_lr: learning rate of the critic as a multiple of ``lr``.
        critic_weight_decay: weight decay of the critic; ``weight_decay`` if ``None``.
        betas: betas of the optimiser, if it is a kind of Adam (DomainBed: 0.5 and 0.9); ``None``: its defaults.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``critic_steps`` is below 1, or ``weight`` or ``penalty`` is negative.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {
        "weight": (0.01, 100.0),
        "penalty": (0.01, 10.0),
        "critic_steps": [1, 2, 4, 8],
        "critic_lr": (0.1, 10.0),
    }

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_sources: int,
        weight: NonNegativeFloat = 1.0,
        penalty: NonNegativeFloat = 0.0,
        critic_steps: PositiveInt = 1,
        width: PositiveInt = 256,
        depth: NonNegativeInt = 2,
        dropout: ClosedUnitInterval = 0.0,
        critic_lr: NonNegativeFloat = 1.0,
        critic_weight_decay: NonNegativeFloat | None = None,
        betas: tuple[RightOpenUnitInterval, RightOpenUnitInterval] | None = (0.5, 0.9),
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.penalty, self.critic_steps = weight, penalty, critic_steps
        self.critic_lr, self.critic_weight_decay, self.betas = critic_lr, critic_weight_decay, betas
        self.critic = mlp(network.num_features, [width] * depth, num_sources, dropout=dropout)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's groups, then the critic's."""
        groups = super().parameter_groups()
        groups[-1]["lr"] = self.lr * self.critic_lr
        if self.critic_weight_decay is not None:
            groups[-1]["weight_decay"] = self.critic_weight_decay
        return groups

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, with the given betas."""
        optimizer = super().configure_optimizers()
        for group in optimizer.param_groups:
            if self.betas is not None and len(group.get("betas", ())) == 2:
                group["betas"] = tuple(self.betas)
        return optimizer

    # ---- one batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """An update of the network or of the critic."""
        terms = self.critic_update(batch) if self.is_critics_turn else self.network_update(batch)
        self.record_step(batch, terms)
        return reduce(add, terms.values()).detach()

    @property
    def is_critics_turn(self) -> bool:
        """Whether this batch updates the critic: all but the last but one of 1 + ``critic_steps`` do (DomainBed)."""
        return bool(self.weight) and (self.step + 1) % (1 + self.critic_steps) < self.critic_steps

    def network_update(self, batch: Batch) -> Losses:
        """Trains the network on the labels, and to raise the critic's loss."""
        joint = self.forward_batch(batch)
        terms = {"supervised": self.problem.loss(joint, batch.y)}
        if self.weight:
            terms["domain"] = -self.weight * self.critic_loss(joint.features, batch)
        moved = trained_parameters(self.network)
        self.apply_gradients((moved, self.gradients(reduce(add, terms.values()), moved)))
        return terms

    def critic_update(self, batch: Batch) -> Losses:
        """Trains the critic to tell the sources apart."""
        with torch.no_grad():
            features = self.forward_batch(batch).features
        loss = self.critic_loss(features, batch)
        moved = self.critic_parameters
        self.apply_gradients((moved, self.gradients(loss, moved)), average=False)
        return {"critic": loss}

    @property
    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that the critic's updates train."""
        return list(self.critic.parameters())

    def critic_loss(self, features: Tensor, batch: Batch) -> Tensor:
        """L_D of the class's docstring, features (n, d) -> scalar."""
        inputs = self.critic_inputs(features, batch.y)
        if not inputs.requires_grad:
            inputs = inputs.detach().requires_grad_()
        scores = full_precision(self.critic(inputs))
        each = F.cross_entropy(scores, batch.domain, reduction="none")
        loss = self.average(each, batch.y)
        if self.penalty:
            (slope,) = torch.autograd.grad(each.sum(), inputs, create_graph=True)
            loss = loss + self.penalty * slope.square().sum(1).mean()
        if self.logs_this_step:
            self.diagnose("critic_accuracy", (scores.argmax(1) == batch.domain).float().mean())
        return loss

    def critic_inputs(self, features: Tensor, labels: Tensor) -> Tensor:
        """The critic's inputs, from features (n, d) of rows with labels (n,)."""
        return features

    def average(self, each: Tensor, labels: Tensor) -> Tensor:
        """The loss of the batch, from the losses of its rows (n,) with labels (n,)."""
        return each.mean()


class DomainBedCDANN(DomainBedDANN):
    """Trains features from which a critic that knows the class cannot tell the source: "CDANN" in DomainBed's tables.

    Loss: as :class:`DomainBedDANN`'s, with two changes. critic(z + e_y) replaces critic(z), where e_y (n, d) is a
    learnt embedding of the row's class, trained by the critic's updates. Each row's CE counts in L_D in inverse
    proportion to the number of rows of its class in the batch: sum_i CE_i / (K n_(y_i)). This is a weighted mean if all
    K classes are in the batch.

    Li et al., Deep Domain Generalization via Conditional Invariant Adversarial Networks, ECCV 2018,
    https://openaccess.thecvf.com/content_ECCV_2018/html/Ya_Li_Deep_Domain_Generalization_ECCV_2018_paper.html, in the
    form of DomainBed (Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434), read in its code. That
    code takes the batch's largest label plus one for K; here K is the number of classes. Rows of a class are counted
    over all ranks.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        num_classes: number of classes to predict.
        num_sources: number S of sources.
        base: see :class:`DomainBedDANN`.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, num_classes: int, num_sources: int, **base
    ) -> None:
        super().__init__(network, num_classes=num_classes, num_sources=num_sources, **base)
        self.embedding = nn.Embedding(num_classes, network.num_features)

    @property
    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters of the critic and the embeddings of the classes."""
        return [*super().critic_parameters, *self.embedding.parameters()]

    def critic_inputs(self, features: Tensor, labels: Tensor) -> Tensor:
        """The features, shifted by the embedding of their class."""
        shifted: Tensor = features + self.embedding(labels)
        return shifted

    def average(self, each: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum over all ranks' rows: this rank's share, times the number of ranks, which are averaged."""
        counts = each.new_zeros(self.num_classes).index_add_(0, labels, torch.ones_like(each))
        counts = sum_over_ranks(counts.detach())
        return world_size() * (each / (self.num_classes * counts[labels])).sum()
