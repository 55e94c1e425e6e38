"""A label head that scores classes by direction: a linear layer between unit vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.nn.precision import full_precision


class PrototypeHead(nn.Module):
    """cos(f, w_k) / temperature for prototypes w_k that :meth:`normalise` keeps at length 1.

    Args:
        num_features: width d of the features.
        count: number K of prototypes.
        temperature: divides the cosines.
    """

    def __init__(self, num_features: int, count: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight = nn.Parameter(nn.Linear(num_features, count, bias=False).weight.detach().clone())
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Scales every prototype back to length 1; to be called after each update."""
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def cosines(self, features: Tensor) -> Tensor:
        """(N, d) -> (N, K) cosines in full precision, for prototypes of any length; these get no gradient."""
        prototypes = F.normalize(full_precision(self.weight.detach()), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(full_precision(features), dim=1) @ prototypes.T

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, d) -> scores (N, K)."""
        return F.linear(F.normalize(features, dim=1), self.weight) / self.temperature
