"""Prototypes of clusters: a loss that pulls features towards them, and the update of the prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision


@torch.no_grad()
def move_prototypes(prototypes: Tensor, features: Tensor, codes: Tensor) -> Tensor:
    """Prototypes after a batch: m becomes (w m + (1 - w) b) / |...|, where b is the direction of the cluster's rows.

    b is the normalised sum of the cluster's normalised features, and w is the cosine of m and b: the less a batch
    agrees with a prototype, the further that prototype moves. A cluster without a row keeps its prototype. Li et al.,
    CVPR 2021 (DCC).

    Args:
        prototypes: (k, d) unit vectors.
        features: (n, d), of all ranks; nothing is gathered here.
        codes: (n,) int64, the cluster of each row.

    Returns:
        (k, d) unit vectors.
    """
    members = (codes == torch.arange(len(prototypes), device=codes.device)[:, None]).to(prototypes.dtype)
    with torch.autocast(features.device.type, enabled=False):
        directions = F.normalize(members @ F.normalize(features.to(prototypes.dtype), dim=1), dim=1)
    cosines = (prototypes * directions).sum(1, keepdim=True)
    moved = F.normalize(cosines * prototypes + (1 - cosines) * directions, dim=1)
    return torch.where(members.any(1, keepdim=True), moved, prototypes)


def prototype_cross_entropy(prototypes: Tensor, features: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of softmax(cos(f, m) / temperature) over the prototypes m; the label is each row's own cluster.

    Args:
        prototypes: (k, d) unit vectors.
        features: (n, d).
        codes: (n,) int64, the cluster of each row.
        temperature: divides the cosines; a lower one sharpens the softmax.

    Returns:
        A scalar, the mean over the rows.
    """
    with torch.autocast(features.device.type, enabled=False):
        units = F.normalize(full_precision(features), dim=1)
        return F.cross_entropy(units @ prototypes.to(units.dtype).T / temperature, codes)
