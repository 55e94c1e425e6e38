"""CORAL between all pairs of sources: equal means and covariances of the features."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.losses.coral import pairwise_mean_and_covariance
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat


class CORAL(GeneralizationMethod):
    """Trains features with the same mean and covariance in every source.

    Loss: CE + weight * mean over pairs of sources of mean_k (m - m')_k^2 + mean_kl (C - C')_kl^2, where m (d,) is the
    mean and C (d, d) the unbiased covariance of one source's features (n, d).

    After Sun and Saenko, Deep CORAL, 2016, https://arxiv.org/abs/1607.01719. That paper matches the covariances of one
    source and a target, and divides by 4: that is ``DeepCORAL``. This is the form of Gulrajani and Lopez-Paz, ICLR
    2021, https://arxiv.org/abs/2007.01434 (read in DomainBed's code); the default weight is theirs. DomainBed makes one
    pass per source. This differs from one pass of all sources if the network normalises by batch statistics.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the difference (DomainBed: 1).
        base: see :class:`~dafw.methods.base.Method`.
    """

    least_rows_of_domain: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 10.0)}

    def __init__(self, network: Network, *, weight: NonNegativeFloat = 1.0, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, **base)
        self.weight = weight

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """The weighted difference of means and covariances."""
        return {"coral": self.weight * pairwise_mean_and_covariance([one.features for one in domains])}
