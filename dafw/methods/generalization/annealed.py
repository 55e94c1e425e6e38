"""Base of methods with a penalty whose weight jumps at one step, where the optimiser's state is cleared."""

from typing import Any

from dafw.data.batch import Batch
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.network import Network
from dafw.ranges import NonNegativeFloat, NonNegativeInt


class AnnealedPenalty(GeneralizationMethod, abstract=True):
    """Base of methods with a penalty whose weight jumps at one step.

    Gradients before and after the jump differ by orders of magnitude, so moments from before it would steer the steps
    after it. The step at which the optimiser's state is cleared depends on the number of the step alone, so a resumed
    run does the same as an uninterrupted one.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the penalty from the jump on.
        early_weight: weight of the penalty before the jump (DomainBed: 1).
        anneal_steps: step, counted from 0, at which the weight jumps (DomainBed: 500).
        reset_optimizer: whether the optimiser's state is cleared there (DomainBed: yes).
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``anneal_steps`` is negative.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat,
        early_weight: NonNegativeFloat = 1.0,
        anneal_steps: NonNegativeInt = 500,
        reset_optimizer: bool = True,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.early_weight = weight, early_weight
        self.anneal_steps, self.reset_optimizer = anneal_steps, reset_optimizer

    @property
    def penalty_weight(self) -> float:
        """The weight of the penalty at the current step."""
        return self.weight if self.step >= self.anneal_steps else self.early_weight

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> Any:
        """Clears the optimiser's state at the jump; the optimiser makes a new one in its next step."""
        super().on_train_batch_start(batch, batch_idx)
        if self.reset_optimizer and self.step == self.anneal_steps:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
