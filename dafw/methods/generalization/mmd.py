"""MMD between all pairs of sources: aligns the distributions of features with Gaussian kernels."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.losses.mmd import GAMMAS, pairwise_mmd
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveFloat


class MMD(GeneralizationMethod):
    """Trains features with the same distribution in all sources, measured by Gaussian kernels.

    Loss: CE + weight * mean over pairs of sources of mean k(f, f) + mean k(f', f') - 2 mean k(f, f'), over all rows of
    features (n, d), pairs of a row with itself included; k(f, f') = sum over gammas of exp(-gamma |f - f'|^2).

    After Li et al., Domain Generalization with Adversarial Feature Learning, CVPR 2018
    (https://openaccess.thecvf.com/content_cvpr_2018/html/Li_Domain_Generalization_With_CVPR_2018_paper.html), without
    that paper's autoencoder and critic. The form and the defaults are those of Gulrajani and Lopez-Paz, ICLR 2021,
    https://arxiv.org/abs/2007.01434 (read in DomainBed's code). DomainBed makes one pass per source. This differs from
    one pass of all sources if the network normalises by batch statistics.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the discrepancy (DomainBed: 1).
        gammas: one per kernel, in units of 1 / squared distance (DomainBed: the powers of ten from 0.001 to 1000).
        base: see :class:`~dafw.methods.base.Method`.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 10.0)}

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, weight: NonNegativeFloat = 1.0, gammas: list[PositiveFloat] | None = None, **base
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.gammas = weight, tuple(gammas or GAMMAS)

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """The weighted discrepancy."""
        return {"mmd": self.weight * pairwise_mmd([one.features for one in domains], self.gammas)}
