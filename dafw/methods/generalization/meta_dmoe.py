"""Meta-DMoE: experts of the sources, and a student that learns to learn from them without a label."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.aggregator import ExpertAggregator, other_experts
from dafw.nn.distributed import sum_over_ranks, world_size
from dafw.nn.layout import BatchLayout
from dafw.nn.modes import evaluation_mode
from dafw.nn.network import Network
from dafw.nn.norm import NormMode, convert_norm
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, PositiveFloat, PositiveInt, RightOpenUnitInterval

Aggregation = Literal["attention", "mean"]


class MetaDMoE(ManualOptimization, GeneralizationMethod):
    """Trains a student so that one step towards what other domains' experts see makes it better on a new domain.

    Loss: in three parts of the training, logits (n, K) and features (n, d).

    1. CE of each expert on the rows of its own sources, and CE of the student (``network``) on all rows.
    2. CE of the aggregator's label head on the features of all experts, which stay as they are from here on.
    3. For each source the rows are divided into a support and a query set. t (n, d) is what the aggregator makes of the
       experts' features of the support set, without the expert of that source. The student's weights make a step
       theta' = theta - ``inner_lr`` * gradient of mean (f_theta(support) - t)^2. The loss is CE of theta' on the query
       set, and its mean over the sources. Its gradient moves student and aggregator, and flows through the step (second
       order).

    In parts 2 and 3 batch normalisation normalises by running statistics, which stay. Evaluations are those of the
    student without a step. :class:`~dafw.methods.test_time.meta_dmoe_adaptation.MetaDMoEAdaptation` starts from such a
    run and makes the step on each target.

    Zhong et al., Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts, NeurIPS 2022,
    https://arxiv.org/abs/2210.03885. The defaults are those of the authors' code for iWildCam, which trains the parts
    one after the other, with 10 experts and an epoch count for each. There a batch has one source and Adam starts anew
    in each epoch; their aggregator has dropout in part 2 and learns with a rate of 3e-6 there. Here a batch has all
    sources. ``aggregation: mean`` is the control of the aggregator. Attention in the student takes its plain form in
    part 3, since the others have no second derivative. The inner gradient is that of the rows of all ranks.

    Args:
        network: of the student and of each expert: images (N, C, H, W) to features (N, d) and logits (N, K).
        num_sources: number S of the sources (the command line fills it in from the datamodule).
        experts: number E of experts; S if ``None``. Source s belongs to expert floor(s E / S).
        pretrain: share of the training that part 1 takes. With 1 the student is ERM's, which is the control.
        aggregate: share of the training that part 2 takes.
        support: share of a source's rows in the support set (authors' code, iWildCam: 24 of 40), rounded on each rank.
        inner_lr: rate of the student's step (authors' code, iWildCam: 3e-4; Camelyon17 1e-3).
        aggregation: ``attention``, or the ``mean`` of the experts' features, which has no part 2.
        heads: of the aggregator's attention (authors' code: 16). It divides d.
        optimizer: see the base (authors' code: Adam).
        lr: of the student and of the experts (authors' code, iWildCam: 3e-5).
        aggregator_lr: of the aggregator (authors' code: 1e-6).
        base: see :class:`~dafw.methods.generalization.base.GeneralizationMethod`.

    Raises:
        UserError: for fewer than two experts, more experts than sources, or ``heads`` that do not divide d; when
            training starts, for fewer than two rows of a source on a rank.
    """

    control: ClassVar[dict[str, Any]] = {"pretrain": 1.0}
    #: They differ between the parts.
    backbone_passes: ClassVar[int | None] = None
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-1), "inner_lr": (1e-5, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_sources: int,
        experts: PositiveInt | None = None,
        pretrain: ClosedUnitInterval = 0.5,
        aggregate: RightOpenUnitInterval = 0.1,
        support: RightOpenUnitInterval = 0.6,
        inner_lr: PositiveFloat = 3e-4,
        aggregation: Aggregation = "attention",
        heads: PositiveInt = 16,
        optimizer: str = "adam",
        lr: PositiveFloat = 3e-5,
        aggregator_lr: PositiveFloat = 1e-6,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.pretrain, self.aggregate, self.support = pretrain, aggregate, support
        self.inner_lr, self.aggregator_lr = inner_lr, aggregator_lr
        self.aggregation = choose("aggregation", aggregation, ("attention", "mean"))
        self.homes = homes(num_sources, experts)
        self.experts = make_experts(network, max(self.homes) + 1)
        self.aggregator = ExpertAggregator(
            network.num_features, self.num_classes, heads=heads, attends=aggregation == "attention"
        ).to(network.shift)
        self.expert_layout = expert_layout(self.experts, self.norm)

    def setup(self, stage: str) -> None:
        """As the base, which gives the experts a layout of their own on several ranks."""
        super().setup(stage)
        self.expert_layout = expert_layout(self.experts, self.norm)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of the student, of each expert, and of the aggregator."""
        groups = self.network.parameter_groups(self.lr)
        for expert in self.experts:
            assert isinstance(expert, Network)
            groups += expert.parameter_groups(self.lr)
        aggregator = trained_parameters(self.aggregator)
        return [*groups, *([{"params": aggregator, "lr": self.aggregator_lr}] if aggregator else [])]

    # ---- one batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """An update of what the training's part moves."""
        attends = self.aggregator.attends
        if self.progress < self.pretrain:
            terms = self.train_experts(batch)
        elif self.progress < self.pretrain + self.aggregate and attends:
            terms = self.train_aggregator(batch)
        else:
            terms = self.train_student(batch)
        self.record_step(batch, terms)
        return torch.stack([term.detach() for term in terms.values()]).sum()

    def train_experts(self, batch: Batch) -> Losses:
        """Part 1: the supervised loss of the student on all rows, and the mean of those of the experts on their own."""
        joint = self.forward_batch(batch)
        supervised = self.problem.loss(joint, batch.y)
        moved, each = trained_parameters(self.network), []
        for number, expert in enumerate(self.experts):
            rows = self._rows([source for source, home in enumerate(self.homes) if home == number], batch)
            each.append(self.problem.loss(self.pass_expert(expert, batch, rows), batch.y[rows]))
        own, loss = trained_parameters(self.experts), torch.stack(each).sum()
        self.apply_gradients((moved, self.gradients(supervised, moved)), (own, self.gradients(loss, own)))
        return {"supervised": supervised, "experts": loss / len(each)}

    def train_aggregator(self, batch: Batch) -> Losses:
        """Part 2: the loss of the aggregator's label head."""
        features = self.expert_features(batch, slice(None))
        loss = F.cross_entropy(self.aggregator.classify(features), batch.y)
        moved = trained_parameters(self.aggregator)
        self.apply_gradients((moved, self.gradients(loss, moved)), average=False)
        return {"aggregator": loss}

    def train_student(self, batch: Batch) -> Losses:
        """Part 3: the loss on the query sets after a step on the support sets."""
        count, queries, supports = len(self.homes), [], []
        for source, home in enumerate(self.homes):
            rows = self._rows([source], batch)
            middle = rows.start + self._support_rows(rows.stop - rows.start)
            first, second = slice(rows.start, middle), slice(middle, rows.stop)
            goal = self.aggregator(other_experts(self.expert_features(batch, first), home))
            weights, distance = self.after_step(batch, first, goal)
            query = self.problem.loss(self.pass_student(batch, second, weights), batch.y[second])
            queries.append(query)
            supports.append(distance.detach())
        loss = torch.stack(queries).sum() / count
        moved = [*trained_parameters(self.network), *trained_parameters(self.aggregator)]
        self.apply_gradients((moved, self.gradients(loss, moved)))
        return {"query": loss, "distance": torch.stack(supports).mean()}

    def after_step(self, batch: Batch, rows: slice, goal: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The student's weights after one step towards a goal, and how far it was before.

        Args:
            batch: has the rows.
            rows: the support set, of n rows.
            goal: (n, d).

        Returns:
            Those weights that have moved, by name, with the graph of their gradient; and a scalar.
        """
        named = {name: one for name, one in self.network.named_parameters() if one.requires_grad}
        distance = F.mse_loss(self.pass_student(batch, rows, named).features, goal)
        found = torch.autograd.grad(distance, list(named.values()), create_graph=True, allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}
        total = sum_over_ranks(torch.cat([one.flatten() for one in gradients.values()])) / world_size()
        parts = torch.split(total, [one.numel() for one in gradients.values()])
        moved = zip(gradients.items(), parts, strict=True)
        return {name: named[name] - self.inner_lr * part.view_as(one) for (name, one), part in moved}, distance

    def pass_student(self, batch: Batch, rows: slice, weights: Mapping[str, Tensor]) -> Outputs:
        """Outputs of the student for some rows with other weights, by running statistics."""
        inputs, how = _inputs(batch, rows)
        with evaluation_mode(self.network), self.layout.temporarily(**how), sdpa_kernel(SDPBackend.MATH):
            outputs: Outputs = functional_call(self.network, dict(weights), inputs)
        return outputs

    def pass_expert(self, expert: nn.Module, batch: Batch, rows: slice) -> Outputs:
        """Outputs of an expert for some rows of a batch."""
        inputs, how = _inputs(batch, rows)
        with self.expert_layout.temporarily(**how):
            outputs: Outputs = expert(*inputs)
        return outputs

    @torch.no_grad()
    def expert_features(self, batch: Batch, rows: slice) -> Tensor:
        """The features of all experts for n rows, by running statistics: (n, E, d)."""
        with evaluation_mode(self.experts):
            return torch.stack([self.pass_expert(expert, batch, rows).features for expert in self.experts], 1)

    def _rows(self, sources: list[int], batch: Batch) -> slice:
        """Where the rows of sources that follow one another are in a batch."""
        each = len(batch) // len(self.homes)
        return slice(sources[0] * each, (sources[-1] + 1) * each)

    def _support_rows(self, count: int) -> int:
        if count < 2:
            raise UserError("MetaDMoE needs two rows of each source on each rank: give a larger data.batch_size")
        return min(max(round(self.support * count), 1), count - 1)


def homes(num_sources: int, experts: int | None) -> list[int]:
    """The number of the expert that each source belongs to.

    Raises:
        UserError: for fewer than two experts, or more than sources.
    """
    count = num_sources if experts is None else experts
    if not 2 <= count <= num_sources:
        raise UserError(
            f"MetaDMoE needs two experts or more, and a source for each: model.experts is {count}, and there are "
            f"{num_sources} sources"
        )
    return [source * count // num_sources for source in range(num_sources)]


def make_experts(network: Network, count: int) -> nn.ModuleList:
    """Copies of a network."""
    return nn.ModuleList(copy.deepcopy(network) for _ in range(count))


def expert_layout(experts: nn.ModuleList, norm: NormMode) -> BatchLayout:
    """Gives the experts a layout of their own, with the student's norm."""
    return convert_norm(experts, "joint" if norm == "group" else norm)


def _inputs(batch: Batch, rows: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a network for some rows of a batch, and what its layout must know of them."""
    x = batch.x[rows]
    sizes = None if batch.sizes is None else batch.sizes[rows]
    canvas = (0, 0) if sizes is None else (int(x.shape[-2]), int(x.shape[-1]))
    how = {"num_source": len(x), "rows": len(x), "sizes": sizes, "canvas": canvas}
    return ((x,) if sizes is None else (x, sizes)), how
