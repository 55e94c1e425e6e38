"""BNM: batch nuclear-norm maximisation."""

from typing import Any, ClassVar, Literal

from dafw.losses.nuclear import negative_nuclear_norm
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat


class BNM(AdaptationMethod):
    """Makes predictions on the target individually confident and jointly diverse.

    Loss: CE(source) - weight * ||softmax(logits_t)||_* / n, logits (n, K): the nuclear norm of the batch of target
    predictions, divided by the number of rows.

    Cui et al., Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label Insufficient
    Situations, CVPR 2020, https://arxiv.org/abs/2003.12237. The weight 1 is DeepDA's; the paper's is, as recalled, the
    same. On a GPU each step waits for the singular values.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        scale: divide the norm by the number of ``rows`` (the paper's form) or of singular ``values``, which gives their
            mean (DeepDA; the authors' code too, as recalled). The latter is larger if there are fewer classes than
            rows.
        weight: weight of the norm.
        base: see :class:`~dafw.methods.base.Method`. DeepDA trains it with lr 0.001, weight decay
            0.0005, plain momentum, and ``norm: separate``.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 3.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, scale: Literal["rows", "values"] = "rows", weight: NonNegativeFloat = 1.0, **base
    ) -> None:
        super().__init__(network, **base)
        self.scale, self.weight = scale, weight

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The norm over the target rows of all ranks."""
        return {"nuclear": self.weight * negative_nuclear_norm(target.logits, scale=self.scale)}
