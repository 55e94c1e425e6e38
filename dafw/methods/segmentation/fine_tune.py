"""FineTune: many noisy labels first, few clean ones then."""

from typing import Any, ClassVar

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.problems.model import NetworkBase
from dafw.ranges import ClosedUnitInterval, PositiveFloat


class FineTune(GeneralizationMethod):
    """Training on the first source, whose labels may be noisy, is followed by training on the second, the clean one.

    Loss: the problem's supervised loss, CE over labelled pixels of logits (n, K, H, W), of the first source's rows
    until ``switch`` of all steps are done, then of the second's. The second stage has its own schedule of the rate,
    from ``lr * second_lr`` on, and starts with a fresh state of the optimiser.

    Neupane, Aryal and Rajabifard, Supervised Domain Adaptation for Building Extraction from Off-Nadir Aerial Images,
    2023, https://arxiv.org/abs/2311.03867; only its abstract was read, and this is no reproduction. Its setting has a
    large set with misaligned labels and a small set with clean ones. ``switch`` and ``second_lr`` are ours. Give
    ``data.source`` as [noisy, clean]. Each batch holds rows of both sources, of which those of the stage are passed.

    There are two controls. ``switch: 0`` trains on the clean source alone, from ``lr`` on; it is the control that
    tables run. ``switch: 1`` trains on the noisy source alone.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W).
        switch: share of all steps that train on the first source.
        second_lr: rate at the start of the second stage as a multiple of ``lr``, if there is a first stage.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: when training starts, if there are not exactly two sources.
    """

    kinds = ("segmentation",)
    control: ClassVar[dict[str, Any]] = {"switch": 0.0}
    control_difference_reason: ClassVar[str] = "it trains on the rows of the second source alone"
    search_space: ClassVar[dict[str, Any]] = {"switch": (0.3, 0.9), "second_lr": (0.01, 1.0)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        switch: ClosedUnitInterval = 0.5,
        second_lr: PositiveFloat = 0.1,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.switch, self.second_lr = switch, second_lr

    def on_fit_start(self) -> None:
        """As the base; counts the sources."""
        super().on_fit_start()
        if len(self.data.labelled) != 2:
            raise UserError(
                f"FineTune trains on one source, then on another: data.source must be [noisy, clean], not "
                f"{', '.join(self.data.labelled)}"
            )

    @property
    def switch_step(self) -> int:
        """Number of the first step of the second stage, from 0."""
        return round(self.switch * self.steps_planned)

    def set_rates(self, progress: float, step: int) -> None:
        """Sets the learning rates as a function of the stage's own progress and step."""
        first = self.switch_step
        start, length = (0, first) if step < first else (first, self.steps_planned - first)
        super().set_rates((step - start) / max(length, 1), step - start)
        if step >= first > 0:
            for optimizer in self.trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] *= self.second_lr

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """As the base; the second stage starts with a fresh optimiser."""
        super().on_train_batch_start(batch, batch_idx)
        if self.step == self.switch_step:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def losses(self, batch: Batch) -> Losses:
        """The supervised terms of the rows of the stage's source."""
        count = len(batch) // 2
        rows = slice(0, count) if self.step < self.switch_step else slice(count, None)
        sizes = None if batch.sizes is None else batch.sizes[rows]
        outputs = self.forward_rows(batch.x[rows], count, sizes=sizes)
        return dict(self.problem.terms(outputs, batch.y[rows]))
