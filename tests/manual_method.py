"""A method that sets its gradients itself and trains what source-only trains."""

from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods import SourceOnly
from dafw.methods.manual import ManualOptimization


class Manual(ManualOptimization, SourceOnly):
    """The supervised loss in two halves, whose gradients are taken one by one."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.losses(batch)
        self.record_step(batch, terms)
        trained = list(self.network.parameters())
        halves = [self.gradients(terms["supervised"] / 2, trained, retain_graph=i == 0) for i in range(2)]
        self.apply_gradients((trained, [one + other for one, other in zip(*halves, strict=True)]))
        return terms["supervised"]
