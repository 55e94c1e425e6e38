"""AdaBN: the target's own batch statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods.adaptation.source_only import SourceOnly
from dafw.methods.target_statistics import estimate, served_with
from dafw.nn.statistics import batch_norms
from dafw.problems import NetworkBase


class AdaBN(SourceOnly):
    """Source-only training; on the target, every batch norm uses statistics of the target.

    Loss: CE(source). Before each evaluation one pass over the target's unlabelled training split sets the mean and the
    variance (C,) of each layer to their averages over the batches of that pass. Source rows use the source's
    statistics.

    Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, ICLR 2017 workshops,
    https://arxiv.org/abs/1603.04779, algorithm 1.

    Args:
        network: images (N, C, H, W) to outputs of any kind; must have batch normalisation.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if the network has no batch normalisation.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-3, 1e-1), "weight_decay": (1e-6, 1e-2)}

    def __init__(self, network: NetworkBase, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, **base)
        for position, layer in enumerate(batch_norms(self.eval_network, "AdaBN")):
            for name in ("running_mean", "running_var"):
                self.register_buffer(f"target_{name}_{position}", getattr(layer, name).detach().clone())

    def _target(self, position: int, name: str) -> Tensor:
        buffer = getattr(self, f"target_{name}_{position}")
        assert isinstance(buffer, Tensor)
        return buffer

    @contextmanager
    def with_targets_norm(self) -> Iterator[None]:
        """Within the block, the batch norms hold the target's statistics."""
        with served_with(batch_norms(self.eval_network), self._statistics()):
            yield

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        count = len(batch_norms(self.eval_network))
        return [(self._target(n, "running_mean"), self._target(n, "running_var")) for n in range(count)]

    def forward(self, x: Any) -> Any:
        """Predicts on the target with the target's statistics."""
        with self.with_targets_norm():
            return super().forward(x)

    def evaluate(self, batch: Batch, source: bool) -> Any:
        """Source rows with the source's statistics, target rows with the target's."""
        if source:
            return super().evaluate(batch, source)
        with self.with_targets_norm():
            return super().evaluate(batch, source)

    def prepare_evaluation(self, stage: str) -> None:
        """Estimates the target's statistics, except for a prediction, which has no data but its own."""
        super().prepare_evaluation(stage)
        if stage != "predict":
            estimate(self, batch_norms(self.eval_network), self._statistics())
