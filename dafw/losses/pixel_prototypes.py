"""Mean features of classes, and how sure and how even the features of pixels are among them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.maps import pixel_information
from dafw.nn.distributed import sum_over_ranks
from dafw.nn.precision import full_precision


@torch.no_grad()
def moved_prototypes(prototypes: Tensor, features: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """Prototypes after a step: momentum * old + (1 - momentum) * mean feature of the class's places on all ranks.

    A class that has no prototype yet takes the mean. A class without a place keeps its prototype.

    Args:
        prototypes: (K, d); zeros for a class that has none.
        features: (n, d, h, w).
        labels: (n, h, w), the class of each place; 255 for none.
        momentum: in [0, 1].

    Returns:
        (K, d).
    """
    classes, width = prototypes.shape
    places = features.to(prototypes.dtype).movedim(1, -1).reshape(-1, width)
    chosen = (labels.flatten()[:, None] == torch.arange(classes, device=labels.device)).to(prototypes.dtype)
    sums = sum_over_ranks(torch.cat([chosen.T @ places, chosen.sum(0)[:, None]], 1))
    counts, known = sums[:, -1:], prototypes.abs().sum(1, keepdim=True) > 0
    means = sums[:, :-1] / counts.clamp_min(1)
    moved = torch.where(known, torch.lerp(means, prototypes, momentum), means)
    return torch.where(counts > 0, moved, prototypes)


def prototype_information(features: Tensor, prototypes: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """H(mean_i a_i) - mean_i H(a_i) of the places' assignments a = softmax(cos(f, prototypes) / temperature).

    Args:
        features: (n, d, h, w).
        prototypes: (K, d); classes whose prototype is zero are left out, unless all are.
        valid: (n, h, w) bool, the places i that count, on all ranks.
        temperature: of the softmax.

    Returns:
        A scalar from 0 to log K; high if each place is near one prototype, and all together are near all of them.
    """
    directions = F.normalize(full_precision(features), dim=1)
    cosines = torch.einsum("ndhw,kd->nkhw", directions, F.normalize(prototypes.to(directions), dim=1))
    missing = prototypes.abs().sum(1) == 0
    missing = missing & ~missing.all()
    lowest = torch.finfo(cosines.dtype).min / 2
    return pixel_information((cosines / temperature).masked_fill(missing[:, None, None], lowest), valid)
