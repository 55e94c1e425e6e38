"""ERM: training on the sources' labels alone."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.problems import NetworkBase, Outputs


class ERM(GeneralizationMethod):
    """Empirical risk minimisation on all sources together: the baseline and the control of every other method here.

    Loss: CE over the rows of all sources, logits (n, K), with equally many rows of each source. It trains masks and
    boxes too, by the supervised loss of their problem.

    Vapnik, Statistical Learning Theory, 1998; as a baseline of domain generalisation Gulrajani and Lopez-Paz, In Search
    of Lost Domain Generalization, ICLR 2021, https://arxiv.org/abs/2007.01434. Unlike source-only it loads no target
    image in training, not even for batch statistics. The upper bound "train on target" is this method with the
    datamodule's ``oracle: true``; tables mark such a row.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        base: see :class:`~dafw.methods.base.Method`. The benchmark's recipe is in ``experiments/domainbed``.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-1), "weight_decay": (1e-6, 1e-2)}

    def __init__(self, network: NetworkBase, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, **base)

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """No terms."""
        return {}
