"""Diagnostics of the terms of a step: how their gradients compare at the features."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dafw.lightning_adapter import has_trainer
from dafw.nn.distributed import sum_over_ranks
from dafw.problems.outputs import RowOutputs

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


class Diagnostics(Base):
    """Compares the gradients of a step's terms at the features of its first pass."""

    _features: Tensor | None = None

    if TYPE_CHECKING:

        @property
        def logs_this_step(self) -> bool: ...  # noqa: D102
        def diagnose(self, name: str, value: Tensor | float) -> None: ...  # noqa: D102

    def note_features(self, outputs: RowOutputs) -> None:
        """Keeps the features of the step's first pass with gradients, if the step is logged."""
        if not has_trainer(self) or self._features is not None or not self.training or not self.logs_this_step:
            return
        if outputs.features.requires_grad:  # those of a frozen backbone do not
            self._features = outputs.features

    def compare_gradients(self, terms: Mapping[str, Tensor]) -> None:
        """Diagnoses, for each term of a logged step, its gradient's norm at the features over the supervised loss's.

        Args:
            terms: of the step; the one called ``supervised`` is the reference. Their graphs stay.
        """
        features, self._features = self._features, None
        if features is None or "supervised" not in terms or len(terms) < 2:
            return
        squares = {}
        for name, term in terms.items():
            if term.requires_grad:
                (gradient,) = torch.autograd.grad(term, features, retain_graph=True, allow_unused=True)
                if gradient is not None:
                    squares[name] = sum_over_ranks(gradient.square().sum())
        reference = squares.pop("supervised", None)
        for name, square in squares.items():
            if reference is not None:
                self.diagnose(f"gradient_ratio_{name}", (square / reference.clamp_min(1e-24)).sqrt())
