"""Steps whose shared layers descend several objectives in the direction of a preference."""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.mimicking import class_domain_loss, mimicking_loss, refine
from dafw.methods.adaptation.adversarial import AdversarialMethod
from dafw.methods.base import Losses
from dafw.methods.manual import ManualOptimization, with_zeros
from dafw.methods.optimisation import trained_parameters
from dafw.methods.preference import FIXED, Combination, preferred_weights
from dafw.nn.class_critics import ClassCritics
from dafw.nn.distributed import mean_over_ranks
from dafw.nn.network import Network
from dafw.nn.norm import NormMode
from dafw.optim.pareto import GradientRows, Mode
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveInt

Weighed = Literal["shared", "last"]


class Forward(NamedTuple):
    """What one step computes before its gradients.

    Attributes:
        terms: supervised, domain, mimicking, class_critics.
        held_out: the mimicking loss of the held-out rows; ``None`` if the batch has none.
    """

    terms: Losses
    held_out: Tensor | None


class ParetoSteps(ManualOptimization, AdversarialMethod, abstract=True):
    """What turns an adversarial method into ParetoDA; list it before that method. See
    :class:`~dafw.methods.adaptation.pareto_da.ParetoDA`.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        mode: the paper's form or the authors' program's.
        combination: what the shared layers descend.
        weigh_by: the parameters whose gradients the objectives are weighed by.
        class_width: width of the class-wise critics' hidden layers.
        guided_above: how far above its lowest value the held-out loss guides.
        weight: weight of the domain loss in the objective L_D.
        base: the adversarial method's arguments.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    default_norm: ClassVar[NormMode] = "separate"
    held_out: ClassVar[float] = 0.1
    backbone_passes: ClassVar[int] = 3
    control: ClassVar[dict[str, Any]] = {"combination": "source"}
    control_difference_reason: ClassVar[str] = "each domain makes a pass of its own, and so do held-out target rows"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        mode: Mode = "paper",
        combination: Combination = "pareto",
        weigh_by: Weighed = "shared",
        class_width: PositiveInt = 1024,
        guided_above: float | None = None,
        weight: NonNegativeFloat = 1.0,
        **base,
    ) -> None:
        super().__init__(network, weight=weight, **base)
        self.mode, self.combination, self.weigh_by, self.guided_above = mode, combination, weigh_by, guided_above
        self.class_critics = ClassCritics(network.num_features, self.num_classes, width=class_width)

    # ---- the losses

    def losses(self, batch: Batch) -> Losses:
        """The step's terms. What descends which of them is up to :meth:`training_step`."""
        return self.pass_forward(batch).terms

    def pass_forward(self, batch: Batch) -> Forward:
        """Passes the domains and the held-out rows through the network, and takes all losses."""
        joint, parts = self.pass_network(batch)
        source, target = parts[:2]
        scores = self.score_classes([part.features.detach() for part in parts])
        refined = [refine(part.logits, v, mode=self.mode) for part, v in zip(parts[1:], scores[1:], strict=True)]
        terms = {
            "supervised": self.problem.loss(source, batch.y),
            **self.adapt(source, target, joint),
            "mimicking": mimicking_loss(refined[0], mode=self.mode),
            "class_critics": class_domain_loss(scores[0], scores[1], batch.y, refined[0], mode=self.mode),
        }
        return Forward(terms, mimicking_loss(refined[1], mode=self.mode) if refined[1:] else None)

    def pass_network(self, batch: Batch) -> tuple[Outputs, list[Outputs]]:
        """Outputs of source and target together, and of source, target and, if there are any, held-out rows."""
        n, last = batch.num_source, len(batch) - batch.num_held_out
        if self.norm == "joint":
            joint = self.forward_rows(batch.x[:last], n)
            source, target = joint[:n], joint[n:]
        else:
            source, target = self.forward_rows(batch.x[:n], n), self.forward_rows(batch.x[n:last], None)
            joint = Outputs.concatenate([source, target])
        held_out = [self.forward_rows(batch.x[last:], None)] if batch.num_held_out else []
        return joint, [source, target, *held_out]

    def statistics_pass(self, batch: Batch) -> None:
        """The passes of the domains and of the held-out rows."""
        self.pass_network(batch)

    def score_classes(self, parts: list[Tensor]) -> list[Tensor]:
        """Scores (n, K, 2) of the class-wise critics for each of the parts' features (n, d)."""
        if self.mode == "authors":
            return [self.class_critics(part) for part in parts]
        return list(torch.split(self.class_critics(torch.cat(parts)), [len(part) for part in parts]))

    # ---- the step

    def on_fit_start(self) -> None:
        """Notes which parameters belong to which part.

        Raises:
            UserError: if backbone and bottleneck learn nothing, so that no parameter has several objectives.
        """
        super().on_fit_start()
        assert self.network.head is not None
        self._head = trained_parameters(self.network.head)
        self._class_critics = trained_parameters(self.class_critics)
        network = {id(parameter) for parameter in self.network.parameters()}
        taken = {id(parameter) for parameter in [*self._head, *self._class_critics]}
        others = [parameter for parameter in trained_parameters(self) if id(parameter) not in taken]
        self._shared = [parameter for parameter in others if id(parameter) in network]
        self._critic = [parameter for parameter in others if id(parameter) not in network]
        if not self._shared:
            raise UserError(f"{type(self).__name__} weighs gradients at backbone and bottleneck: neither learns")
        last = [parameter for parameter in self._shared if parameter.ndim > 1][-1:]
        self._weighed = last if self.weigh_by == "last" and last else self._shared
        if self.combination in FIXED:  # for which no inner products are needed
            self._weighed = []
        self._gradients = GradientRows(self._weighed, 4)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Gradients of the three objectives and of the held-out loss, the weights, and one step of the optimiser."""
        terms, held_out = self.pass_forward(batch)
        assert held_out is not None, "the datamodule must hold out target rows"
        objectives: list[tuple[Tensor, list[nn.Parameter]]] = [
            (terms["supervised"], self._head),
            (terms["domain"], self._critic),
            (terms["mimicking"], []),
            (held_out, []),
        ]
        gradients, count = self._gradients, len(self._weighed)
        own: list[Tensor] = []
        for row, (loss, parameters) in enumerate(objectives):
            if not (inputs := [*self._weighed, *parameters]):
                continue
            found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
            if count:
                gradients.put(row, found[:count])
            own += with_zeros(parameters, found[count:])
            del found  # before the next are taken
        own += torch.autograd.grad(terms["class_critics"], self._class_critics)
        if count:
            gradients.average()
        weights = self.weigh(gradients, held_out)
        self.record_step(batch, terms, {"held_out": held_out})
        if isinstance(weights, Tensor) and self._weighed is self._shared:
            combined = gradients.combine(weights)
        else:
            weighed = [
                weight * loss
                for weight, (loss, _) in zip(weights, objectives[:3], strict=True)
                if isinstance(weight, Tensor) or weight
            ]
            combined = self.gradients(torch.stack(weighed).sum(), self._shared)
        others = [*self._head, *self._critic, *self._class_critics]
        self.apply_gradients((self._shared, combined), (others, mean_over_ranks(own)))
        return terms["supervised"].detach()

    def weigh(self, gradients: GradientRows, held_out: Tensor) -> Tensor | tuple[float, ...]:
        """Weights of the three objectives in what the shared layers descend.

        Args:
            gradients: of the objectives and of the held-out loss, at the parameters they are weighed by.
            held_out: that loss.

        Returns:
            Numbers if they are fixed; else (3,), like the gradients' matrix and the same on every rank.
        """
        if self.combination in FIXED:
            return FIXED[self.combination]
        names = ("supervised", "domain", "mimicking")
        weights = preferred_weights(self, gradients, held_out, names, guided_above=self.guided_above, mode=self.mode)
        return torch.cat([weights[:2] + 1, weights[2:]]) if self.mode == "authors" else weights
