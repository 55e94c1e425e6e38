"""Small networks and images for them."""

from typing import Any

import torch
from torch import Tensor

from dafw.nn.network import Network


def images(count: int = 4, side: int = 28, channels: int = 3) -> Tensor:
    """Random images, (count, channels, side, side) in uint8."""
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


def network(num_classes: int = 10, **options: Any) -> Network:
    """A network with its head, always of the same weights."""
    torch.manual_seed(0)
    net = Network(**options)
    net.set_classes(num_classes)
    return net
