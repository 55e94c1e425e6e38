"""LAME: predictions that agree with those of their neighbours in the batch."""

from typing import Any, ClassVar, get_args

from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import choose
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.distributed import gather_rows, own_rows
from dafw.nn.network import Network
from dafw.nn.propagation import Affinity, affinities, propagate
from dafw.problems import Outputs
from dafw.ranges import NonNegativeInt, PositiveInt


class LAME(TestTimeMethod):
    """Corrects the start model's predictions of a batch by those of rows with similar features. Nothing learns.

    Loss: none. Served is q, after rounds of q <- softmax(log p + W q) from the predictions q = p: features (n, d),
    logits (n, K), weights W (n, n) by the distances of the normalised features; see
    :func:`~dafw.nn.propagation.affinities` and :func:`~dafw.nn.propagation.propagate`. What is kept is log q.

    Boudiaf et al., Parameter-free Online Test-time Adaptation, CVPR 2022, https://arxiv.org/abs/2201.05718. It helps
    where the rows of a batch are often of one class, as in a stream that is correlated in time. Where they are not, it
    falls below the start model. The rows of all ranks are one batch. A batch of one is served its own prediction,
    sharpened.

    Args:
        network: see the base.
        affinity: ``rbf``, ``knn`` or ``linear``, see :func:`~dafw.nn.propagation.affinities` (the authors' code: rbf).
        neighbours: number k of neighbours that sets the width of ``rbf``, the row itself counted, or that ``knn``
            joins (the authors' code: 5).
        symmetric: whether W is made symmetric (the authors' code: no).
        rounds: most rounds (the authors' code: 100). With 0 the start model's predictions are served, as in the
            control.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.
    """

    default_learns = "nothing"
    control: ClassVar[dict[str, Any]] = {"rounds": 0}
    search_space: ClassVar[dict[str, Any]] = {"affinity": ["rbf", "knn", "linear"], "neighbours": [1, 3, 5, 10]}
    first_served_reason = "the first batch's predictions are corrected, too"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        affinity: Affinity = "rbf",
        neighbours: PositiveInt = 5,
        symmetric: bool = False,
        rounds: NonNegativeInt = 100,
        **base,
    ) -> None:
        super().__init__(network, learns="nothing", **base)
        choose("affinity", affinity, get_args(Affinity))
        self.affinity: Affinity = affinity
        self.neighbours, self.symmetric, self.rounds = neighbours, symmetric, rounds

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See the base; log q (n, K)."""
        if not self.rounds:
            return outputs.logits
        weights = affinities(gather_rows(outputs.features), self.affinity, self.neighbours, symmetric=self.symmetric)
        log_q, _ = propagate(gather_rows(outputs.logits), weights, rounds=self.rounds)
        return own_rows(log_q)
