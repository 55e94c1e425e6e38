"""Mixup between sources: mixed images, mixed losses."""

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod, split_domains
from dafw.nn.network import Network
from dafw.ranges import NonNegativeFloat


class Mixup(GeneralizationMethod):
    """Trains on images mixed from two sources, with each label weighted as its image is.

    Loss: mean over sources i of l_i CE(z_i, y_i) + (1 - l_i) CE(z_i, y_j). z_i are the logits (n, K) of l_i x_i + (1 -
    l_i) x_j. Source j follows i in a random ring of all sources. l_i ~ Beta(alpha, alpha) is one number for all rows.

    Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, https://arxiv.org/abs/1710.09412; between
    domains Xu et al., AAAI 2020, https://arxiv.org/abs/1912.01805, and Yan et al., 2020,
    https://arxiv.org/abs/2001.00677. The pairs and alpha are those of DomainBed (Gulrajani and Lopez-Paz, ICLR 2021,
    https://arxiv.org/abs/2007.01434, read in its code). DomainBed makes one pass per pair. Here all pairs share one
    pass, which differs if the network normalises by batch statistics.

    Ring and shares are functions of the seed and the step, the same on every rank. A single source is paired with
    itself, which is ERM.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        alpha: both parameters of the Beta distribution (DomainBed: 0.2); 0 mixes nothing.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``alpha`` is negative; in training, if the inputs cannot be mixed.
    """

    control: ClassVar[dict[str, Any]] = {"alpha": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"alpha": (0.1, 10.0)}

    def __init__(self, network: Network, *, alpha: NonNegativeFloat = 0.2, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, **base)
        self.alpha = alpha
        self.only_images = "averages images" if alpha else ""

    def losses(self, batch: Batch) -> Losses:
        """One pass of all mixed images."""
        count = self.num_domains(batch)
        if not self.alpha:
            return {"supervised": self.problem.loss(self.forward_batch(batch), batch.y)}
        partners, shares = self.draw(count)
        mixed = self.mix(batch.x, partners, shares)
        domains, labels = split_domains(self.forward_rows(mixed, batch.num_source), batch.y, count)
        found = [
            share * self.problem.loss(outputs, labels[i]) + (1 - share) * self.problem.loss(outputs, labels[j])
            for i, (outputs, j, share) in enumerate(zip(domains, partners, shares, strict=True))
        ]
        return {"supervised": torch.stack(found).mean()}

    def statistics_pass(self, batch: Batch) -> None:
        """The pass of all mixed images."""
        mixed = self.mix(batch.x, *self.draw(self.num_domains(batch))) if self.alpha else batch.x
        self.forward_rows(mixed, batch.num_source)

    def mix(self, x: Any, partners: list[int], shares: list[float]) -> Tensor:
        """Mixes each source's images (n, ...) with its partner's; ``shares`` are the sources' own shares."""
        images = as_floats(x, self.network.shift.dtype).chunk(len(partners))
        mixed = [images[j].lerp(images[i], share) for i, (j, share) in enumerate(zip(partners, shares, strict=True))]
        return torch.cat(mixed)

    def draw(self, count: int) -> tuple[list[int], list[float]]:
        """The partner of each of ``count`` sources in this step, and each source's own share of the mixture."""
        numbers = np.random.default_rng([self.data_seed % 2**32, self.step])
        ring = numbers.permutation(count).tolist()
        partners = dict(pairwise([*ring, ring[0]]))
        shares: list[float] = numbers.beta(self.alpha, self.alpha, count).tolist()
        return [partners[i] for i in range(count)], shares


def as_floats(x: Any, dtype: torch.dtype) -> Tensor:
    """Inputs that can be averaged: uint8 images (N, C, H, W) scaled to [0, 1]; floating point inputs as they are.

    Raises:
        UserError: for any other inputs.
    """
    if not isinstance(x, Tensor):
        raise UserError("Mixup needs inputs of one shape: give data that are scaled to one size")
    if x.dtype == torch.uint8 and x.ndim == 4:
        return x.to(dtype) / 255
    if not x.is_floating_point():
        raise UserError(f"Mixup averages images, uint8 or floating point, not {x.dtype} of {x.ndim} dimensions")
    return x.to(dtype)
