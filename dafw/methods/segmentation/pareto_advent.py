"""ParetoAdvent: ADVENT whose objectives are weighed by a preference among their gradients."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.maps import pixel_information
from dafw.methods.base import Losses
from dafw.methods.preference import FIXED, Combination, preferred_weights
from dafw.methods.segmentation.advent import Advent
from dafw.optim.pareto import GradientRows
from dafw.problems import MaskOutputs, NetworkBase
from dafw.ranges import NonNegativeFloat

OBJECTIVES = ("supervised", "adversarial", "mimicking")


class ParetoAdvent(Advent):
    """Trains masks on three objectives at once, in the direction that held-out target images prefer.

    **This is our reading of ParetoDA for masks.** The paper reports GTA5 -> Cityscapes, but its code is for classes
    alone.

    Loss: w_1 CE(source) + w_2 weight * BCE(D(I_t), 1) + w_3 mimicking_weight * L_T, and for the critic D alone the loss
    of :class:`Advent`. I_t is the target's self-information, (n_t, K, H, W). L_T = -(H(mean_i p_i) - mean_i H(p_i)) is
    minus the mutual information of the target's pixels i and their predictions p = softmax(logits), which clusters
    them. CE includes the auxiliary head's, and the second term both levels.

    Step: a linear programme (:mod:`dafw.optim.pareto`) chooses w >= 0 with sum 3 from the inner products of the
    objectives' gradients and of the gradient of L_T on held-out images: a tenth of the target's training samples, which
    enter no objective and move no running statistic. The gradients are taken at the last shared stage alone, at the
    last kernel before the label head, so that one backward pass of the whole network descends the weighted sum. On
    several ranks the gradients are averaged over the ranks before the programme. It is solved on the device; the host
    reads nothing. The logged terms are weighted. In ParetoDA each head descends its own objective; here the objectives
    are all of the same masks, and the whole network descends the sum.

    Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137; Vu et al., ADVENT, CVPR 2019,
    https://arxiv.org/abs/1811.12833. A summary of the former and its authors' program for classes were read. See
    :class:`~dafw.methods.adaptation.pareto_da.ParetoDA` for the two programmes.

    Args:
        network: images (N, 3, H, W) to outputs with logits (N, K, H, W).
        combination: ``pareto``; ``uniform``, all weights 1, without a programme; ``source``, the cross-entropy alone,
            which is the control.
        mimicking_weight: weight of L_T (ours: 0.001, that of MinEnt's entropy).
        guided_above: the guided programme runs while the held-out loss is more than this above -log K, its lowest
            value; ``null``: never (as the authors' program).
        base: arguments of :class:`Advent`, and of :class:`~dafw.methods.base.Method`.
    """

    held_out: ClassVar[float] = 0.1
    backbone_passes: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"combination": "source"}
    control_difference_reason: ClassVar[str] = "a tenth of the target's samples is held out"
    search_space: ClassVar[dict[str, Any]] = {"weight": (1e-4, 1e-1), "mimicking_weight": (1e-4, 1.0)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        combination: Combination = "pareto",
        mimicking_weight: NonNegativeFloat = 1e-3,
        guided_above: float | None = None,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.combination, self.mimicking_weight, self.guided_above = combination, mimicking_weight, guided_above

    def on_fit_start(self) -> None:
        """Finds the last kernel of the last shared stage.

        Raises:
            UserError: if it learns nothing, so that no parameter has several objectives.
        """
        super().on_fit_start()
        kernels = [parameter for parameter in self.network.shared_stage if parameter.ndim > 1]
        if not kernels:
            raise UserError("ParetoAdvent weighs gradients at the last kernel before the label head: none learns")
        self._gradients = GradientRows(kernels[-1:], len(OBJECTIVES) + 1)

    def losses(self, batch: Batch) -> Losses:
        """The weighted objectives, and the critics' losses."""
        joint, n = self.pass_domains(batch), batch.num_source
        source, target = joint[:n], joint[n:]
        supervised, adapted = self.problem.terms(source, batch.y), self.adapt(source, target, joint)
        objectives = {
            "supervised": supervised,
            "adversarial": {name: term for name, term in adapted.items() if name.startswith("adversarial")},
            "mimicking": {"mimicking": -self.mimicking_weight * pixel_information(target.logits, target.valid())},
        }
        weights = self.weigh([torch.stack(list(terms.values())).sum() for terms in objectives.values()], batch)
        weighted = {
            name: weight * term
            for terms, weight in zip(objectives.values(), weights, strict=True)
            for name, term in terms.items()
        }
        return {**weighted, **{name: term for name, term in adapted.items() if name not in weighted}}

    def pass_domains(self, batch: Batch) -> MaskOutputs:
        """Outputs of source and target, without the held-out rows."""
        last = len(batch) - batch.num_held_out
        sizes = None if batch.sizes is None else batch.sizes[:last]
        outputs: MaskOutputs = self.forward_rows(batch.x[:last], batch.num_source, sizes=sizes)
        return outputs

    def statistics_pass(self, batch: Batch) -> None:
        """The pass of source and target."""
        self.pass_domains(batch)

    def weigh(self, objectives: list[Tensor], batch: Batch) -> Tensor | tuple[float, ...]:
        """A weight for each objective: numbers if they are fixed, else (3,)."""
        if self.combination in FIXED:
            return FIXED[self.combination]
        held_out = self.held_out_loss(batch)
        for row, loss in enumerate([*objectives, held_out]):
            parameters = self._gradients.parameters
            self._gradients.put(row, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
        self._gradients.average()
        return preferred_weights(self, self._gradients, held_out, OBJECTIVES, guided_above=self.guided_above)

    def held_out_loss(self, batch: Batch) -> Tensor:
        """Minus the mutual information of the held-out rows, whose pass moves no running statistic."""
        assert batch.num_held_out, "the datamodule must hold out target rows"
        first = len(batch) - batch.num_held_out
        sizes = None if batch.sizes is None else batch.sizes[first:]
        with self.layout.untracked():
            outputs: MaskOutputs = self.forward_rows(batch.x[first:], None, sizes=sizes)
        return -pixel_information(outputs.logits, outputs.valid())
