"""Inputs as pictures."""

from typing import Any

import torch
from torch import Tensor


def picture(image: Tensor) -> Any:
    """An image (C, H, W) as an array (H, W, 3) in [0, 1]; if it has not 3 channels, the first is shown in grey."""
    pixels = image.float() / (255 if image.dtype == torch.uint8 else 1)
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    return pixels.clamp(0, 1).permute(1, 2, 0).numpy()
