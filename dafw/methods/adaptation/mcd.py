"""MCD: maximum classifier discrepancy."""

from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.losses.discrepancy import class_balance, classifier_discrepancy
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.network import Network
from dafw.nn.norm import DomainBatchNorm
from dafw.nn.two_heads import TwoHeads
from dafw.problems import Outputs
from dafw.problems.model import NetworkBase
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveInt


class MCD(ManualOptimization, AdaptationMethod):
    """Two label heads learn to disagree on target images that the source does not decide; the features remove this.

    Loss: step A, of all weights: CE_1(source) + CE_2(source) + balance * (b_1 + b_2). Step B, of the heads: the same
    - weight * mean |p_1 - p_2|. Step C, of the features, ``feature_steps`` times: weight * mean |p_1 - p_2|.
    p_i = softmax(logits of head i), (n_t, K), and b_i = -mean_k log(mean_i p_ik + 1e-6) over the target's rows.

    Saito et al., Maximum Classifier Discrepancy for Unsupervised Domain Adaptation, CVPR 2018,
    https://arxiv.org/abs/1712.02560, steps A to C. Read in the authors' code: digits are trained without ``balance`` by
    Adam at 0.0002 with batches of 128. VisDA is trained with ``balance`` 0.01, wide heads (``head_widths``) and SGD
    without momentum for the features (``parts: {backbone: {momentum: 0}}``) at a constant rate of 0.001; weight decay
    is 0.0005. tllib follows the latter.

    Each of the 2 + ``feature_steps`` updates is a step of the one optimiser (and of the average of ``ema_decay``). Each
    has its own pass through the backbone, since the weights have changed; the pass of B needs no gradient. Parameters
    that a step does not train have no gradient at all, so neither momentum nor weight decay moves them. Gradients are
    averaged over the ranks at every update. Evaluation uses the mean logits of both heads; their class is that of the
    ensemble which the authors print. tllib reports the head that is better on the target's labels.

    Args:
        network: images (N, C, H, W) to features (n_s + n_t, d) and logits; two heads replace its head.
        num_classes: number of classes to predict.
        weight: weight of the discrepancy (paper: 1; tllib: 10 on Office-31, 30 on Office-Home). With 0 only step A is
            made, since momentum would otherwise keep moving the parameters of B and C.
        balance: weight of the balance of the predicted classes (paper's digits: 0; authors' VisDA and tllib: 0.01).
        feature_steps: number of repetitions of step C (paper: 4).
        head_widths: hidden widths of both heads, each layer Dropout-Linear-BatchNorm-ReLU, instead of the network's
            head (tllib: 1024 and 1024).
        head_dropout: dropout of these layers; each rank of a distributed run draws its own mask.
        base: see :class:`~dafw.methods.base.Method`.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "balance": 0.0}
    control_difference_reason: ClassVar[str] = "it trains two heads"
    backbone_passes: ClassVar[int] = 6
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.3, 30.0), "feature_steps": [1, 2, 4], "lr": (1e-4, 1e-1)}
    network: Network

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        weight: NonNegativeFloat = 1.0,
        balance: NonNegativeFloat = 0.0,
        feature_steps: PositiveInt = 4,
        head_widths: list[PositiveInt] | None = None,
        head_dropout: ClosedUnitInterval = 0.5,
        **base,
    ) -> None:
        self.head_widths, self.head_dropout = head_widths, head_dropout
        super().__init__(network, num_classes=num_classes, **base)
        self.weight, self.balance, self.feature_steps = weight, balance, feature_steps
        self.updates_per_batch = 2 + feature_steps if weight else 1

    def build_network(self, network: NetworkBase, num_classes: int) -> None:
        """Puts two label heads in the place of one."""

        def make_head() -> nn.Module:
            if self.head_widths is None:
                return network.make_head(num_classes)
            return wide_head(network.num_features, self.head_widths, num_classes, self.head_dropout)

        network.head, network.num_classes = TwoHeads(make_head(), make_head()).to(network.shift), num_classes

    @property
    def features(self) -> list[nn.Parameter]:
        """The parameters that step C trains: all of the network but its heads."""
        heads = {id(parameter) for parameter in self.heads}
        return [p for p in self.network.parameters() if p.requires_grad and id(p) not in heads]

    @property
    def heads(self) -> list[nn.Parameter]:
        """The parameters that step B trains."""
        assert self.network.head is not None
        return trained_parameters(self.network.head)

    # ---- one batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Steps A, B and C."""
        with self.layout.temporarily(num_source=batch.num_source):
            terms = self.step_a(batch)
            if self.weight:
                found = self.step_b(batch)
                for _ in range(self.feature_steps):
                    terms["discrepancy"] = self.step_c(batch)
                if self.logs_this_step:
                    self.diagnose("discrepancy_of_step_b", found)
        self.record_step(batch, terms)
        return reduce(add, terms.values()).detach()

    def step_a(self, batch: Batch) -> Losses:
        """Trains all weights on the source; returns the terms of the loss."""
        terms = self.supervise(*self.predict(self.network.extract(batch.x)), batch)
        everything = [*self.features, *self.heads]
        self.apply_gradients((everything, self.gradients(reduce(add, terms.values()), everything)))
        return terms

    def step_b(self, batch: Batch) -> Tensor:
        """Trains the heads on the source and to differ on the target; returns their weighted discrepancy before."""
        with torch.no_grad():
            features = self.network.extract(batch.x)
        first, second = self.predict(features)
        discrepancy = self.disagree(first, second, batch)
        loss = reduce(add, self.supervise(first, second, batch).values()) - discrepancy
        self.apply_gradients((self.heads, self.gradients(loss, self.heads)))
        return discrepancy

    def step_c(self, batch: Batch) -> Tensor:
        """Trains the features so that the heads agree; returns their weighted discrepancy before."""
        discrepancy = self.disagree(*self.predict(self.network.extract(batch.x)), batch)
        self.apply_gradients((self.features, self.gradients(discrepancy, self.features)))
        return discrepancy

    # ---- losses

    def predict(self, features: Tensor) -> tuple[Outputs, Outputs]:
        """Outputs of each head for all rows' features (n_s + n_t, d)."""
        assert isinstance(self.network.head, TwoHeads)
        heads = self.network.head.first, self.network.head.second
        first, second = (Outputs(features, head(features)) for head in heads)
        return first, second

    def supervise(self, first: Outputs, second: Outputs, batch: Batch) -> Losses:
        """The supervised loss of both heads, and their balance on the target if it has a weight."""
        both, n = (first, second), batch.num_source
        terms = {"supervised": reduce(add, [self.problem.loss(outputs[:n], batch.y) for outputs in both])}
        if self.balance:
            terms["balance"] = self.balance * reduce(add, [class_balance(outputs.logits[n:]) for outputs in both])
        return terms

    def disagree(self, first: Outputs, second: Outputs, batch: Batch) -> Tensor:
        """The weighted discrepancy of the heads on the target."""
        n = batch.num_source
        return self.weight * classifier_discrepancy(first.logits[n:], second.logits[n:])


def wide_head(num_features: int, widths: list[int], num_classes: int, dropout: float) -> nn.Sequential:
    """A head with hidden layers: Dropout-Linear-BatchNorm-ReLU for each width, then a Linear."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Dropout(dropout), nn.Linear(num_features, width), DomainBatchNorm(width), nn.ReLU()]
        num_features = width
    return nn.Sequential(*layers, nn.Linear(num_features, num_classes))
