"""Steps that set the gradients themselves: several gradients of one batch, combined, and one step of the optimiser."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.distributed import mean_over_ranks

if TYPE_CHECKING:
    from dafw.methods.base import Method

    Base = Method
else:
    Base = object


class ManualOptimization(Base):
    """Mixed into a method that writes its own ``training_step``. List it before the method it is mixed into.

    Such a step asks for gradients with :meth:`gradients`, which averages them over the ranks, and ends with
    :meth:`apply_gradients`. It must not call ``backward`` on a loss, since the ranks would then average only some
    gradients.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization, self.updates_per_batch = False, 1

    def setup(self, stage: str) -> None:
        """Refuses what Lightning does in automatic steps only.

        Raises:
            UserError: for precision ``16-mixed``, whose scaled losses these steps do not undo.
        """
        super().setup(stage)
        if stage == "fit" and self.trainer.precision == "16-mixed":
            raise UserError(f"{type(self).__name__} sets gradients itself: use trainer.precision bf16-mixed or 32-true")

    def gradients(
        self, loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool = False
    ) -> list[Tensor]:
        """Gradients of ``loss``, averaged over the ranks: those of the whole batch's loss.

        Args:
            loss: a scalar.
            parameters: what to differentiate by; one that ``loss`` does not depend on gets zeros.
            retain_graph: keep the graph for another gradient.
        """
        found = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
        return mean_over_ranks(with_zeros(parameters, found))

    def apply_gradients(self, *parts: tuple[Iterable[nn.Parameter], Iterable[Tensor]], average: bool = True) -> None:
        """One step of the optimiser with the given gradients; parameters in none of the parts keep still.

        Args:
            parts: parameters and their gradients, already averaged over the ranks.
            average: whether the teachers, such as a moving average of the weights, follow too.
        """
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for parameters, gradients in parts:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        optimizer.step()
        if average:
            self.step_teachers()


def with_zeros(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients, zeros where a loss does not depend on a parameter."""
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
