"""Weights of which a random part goes back to where they started."""

from collections.abc import Iterable
from zlib import crc32

import torch
from torch import Tensor


def generator(device: torch.device, seed: int, step: int, name: str) -> torch.Generator:
    """Random numbers on a device that are a function of seed, step and name; every rank has the same.

    Args:
        device: where they are drawn.
        seed: of the run.
        step: number of the batch.
        name: what they are for; another name gives other numbers.
    """
    mixed = ((seed % 2**31) * 1_000_003 + step) * 4_099 + crc32(name.encode())
    return torch.Generator(device).manual_seed(mixed % 2**63)


def restored(weight: Tensor, start: Tensor, drawn: Tensor, rate: float) -> Tensor:
    """``start`` where the number drawn is below ``rate``, else ``weight``; three tensors of one shape."""
    return torch.where(drawn < rate, start, weight)


@torch.no_grad()
def restore_at_random(weights: Iterable[tuple[Tensor, Tensor]], rate: float, seed: int, step: int) -> None:
    """Gives each element of some weights its start value with probability ``rate``, in place.

    Wang et al., Continual Test-Time Domain Adaptation (CoTTA), CVPR 2022, https://arxiv.org/abs/2203.13591, equation 8
    (recalled). Every rank draws the same numbers.

    Args:
        weights: pairs of a weight and its start value.
        rate: probability.
        seed: of the run.
        step: number of the batch.
    """
    drawing: torch.Generator | None = None
    for weight, start in weights:
        drawing = drawing or generator(weight.device, seed, step, "restore")
        drawn = torch.rand(weight.shape, generator=drawing, device=weight.device, dtype=torch.float32)
        weight.copy_(restored(weight, start, drawn, rate))
