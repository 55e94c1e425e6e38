"""Soft neighbourhood density."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.selection.base import Evidence, Validator, precise


class SoftNeighbourhoodDensity(Validator):
    """Mean entropy of each target sample's similarities to the others: high if samples have many near neighbours.

    u_i are the softmax outputs scaled to length one. q_ij is the softmax over j != i of u_i . u_j / temperature. The
    score is mean_i H(q_i), 0 to log(N - 1). Constant predictions reach that maximum. A single sample has no neighbour
    and gives nan.

    Args:
        temperature: the paper's 0.05.
        chunk: number of rows compared with all others at a time; bounds the memory to ``chunk`` * N numbers.
    """

    name: ClassVar[str] = "snd"
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[str] = "Saito et al., ICCV 2021, https://arxiv.org/abs/2108.10860"

    def __init__(self, temperature: float = 0.05, chunk: int = 1024) -> None:
        self.temperature = temperature
        self.chunk = chunk

    def __call__(self, evidence: Evidence) -> Tensor:
        """Mean entropy of the neighbourhoods in nats, 0 to log(N - 1)."""
        units = F.normalize(precise(evidence.target_logits).softmax(-1), dim=-1)
        densities = []
        for start in range(0, len(units), self.chunk):
            similarities = units[start : start + self.chunk] @ units.t() / self.temperature
            similarities.diagonal(start).fill_(-torch.inf)
            densities.append(torch.special.entr(similarities.softmax(-1)).sum(-1))
        return torch.cat(densities).mean() if densities else units.new_tensor(torch.nan)
