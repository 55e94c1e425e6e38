"""Fish: takes steps on one source after the other, then moves part of the way to their end."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.fields import join_rows
from dafw.errors import UserError
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import Range


class Fish(ManualOptimization, GeneralizationMethod):
    """Finds weights at which a step on one source helps the others, because their gradients agree.

    Loss: CE of one source's logits (n, K), then of the next one's. A step of the optimiser follows each, from theta
    to theta'. Then theta <- theta + meta_lr * (theta' - theta). The logged loss is the mean over sources.

    Shi et al., Gradient Matching for Domain Generalization, ICLR 2022, https://arxiv.org/abs/2104.09937, algorithm 1:
    to first order this raises the inner products of the sources' gradients. It follows DomainBed's code, which was read
    (Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434), in three points: the sources keep their
    given order, the optimiser's state continues from batch to batch although theta' is given up, and running statistics
    are averaged as the weights are.

    A batch takes one pass and one update per source: two of each for two sources. Gradients are averaged over the ranks
    at every update. The control makes as many updates on as many rows, each with equal shares of all sources (exact to
    the row if the number of sources divides the number of rows per source).

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        num_sources: S, the number of updates per batch (the command line fills it in from the datamodule).
        meta_lr: share of the way to theta' (DomainBed: 0.5).
        mixed: each update uses rows of all sources instead of one source.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: unless ``meta_lr`` is above 0 and at most 1.
    """

    control: ClassVar[dict[str, Any]] = {"mixed": True}
    control_difference_reason: ClassVar[str] = "it makes several updates a batch and goes part of their way"
    backbone_passes: ClassVar[int] = 2
    search_space: ClassVar[dict[str, Any]] = {"meta_lr": [0.05, 0.1, 0.5]}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_sources: int,
        meta_lr: Annotated[float, Range("is a share of the way, above 0 and at most 1", 0, 1, above=True)] = 0.5,
        mixed: bool = False,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.meta_lr, self.mixed, self.updates_per_batch = meta_lr, mixed, num_sources

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One update on each part of the batch, then part of the way back."""
        values = [v for v in (*self.network.parameters(), *self.network.buffers()) if v.is_floating_point()]
        start = [value.detach().clone() for value in values]
        moved = trained_parameters(self.network)
        found = []
        for labels, outputs in self.passes(batch):
            found.append(self.problem.loss(outputs, labels))
            self.apply_gradients((moved, self.gradients(found[-1], moved)), average=False)
        with torch.no_grad():
            torch._foreach_lerp_(values, start, 1 - self.meta_lr)
        self.step_teachers()
        terms = {"supervised": torch.stack(found).detach().mean()}
        self.record_step(batch, terms)
        return terms["supervised"]

    def passes(self, batch: Batch) -> Iterator[tuple[Tensor, Outputs]]:
        """Labels and outputs of each part of the batch, computed with the weights at the time of the request."""
        for part in self.parts(len(batch), self.num_domains(batch)):
            labels = take(batch.y, part)
            with self.layout.temporarily(domain=take(batch.domain, part)):
                outputs = self.forward_rows(take(batch.x, part), len(labels))
            yield labels, outputs

    def statistics_pass(self, batch: Batch) -> None:
        """One pass for each part of the batch."""
        for _ in self.passes(batch):
            pass

    def parts(self, rows: int, count: int) -> list[list[slice]]:
        """The rows of each update: one source's rows, or, if ``mixed``, a share of each source's rows.

        Args:
            rows: number of rows of the batch, S * n.
            count: S.

        Raises:
            UserError: if there are too few rows for a share of each source.
        """
        n = rows // count
        if not self.mixed:
            return [[slice(start, start + n)] for start in range(0, count * n, n)]
        if n < count:
            raise UserError(f"model.mixed splits the {n} rows of a source into {count}: raise data.batch_size")
        edges = [k * n // count for k in range(count + 1)]
        return [[slice(d * n + edges[k], d * n + edges[k + 1]) for d in range(count)] for k in range(count)]


def take(values: Any, part: list[slice]) -> Any:
    """The given rows of a batch's inputs or labels, (N, ...), :class:`~dafw.data.fields.Fields` or a list."""
    return join_rows([values[rows] for rows in part])
