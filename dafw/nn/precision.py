"""Sums over many numbers need at least 32 bits."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in 16 bits, else ``x`` itself (float64 remains float64)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
