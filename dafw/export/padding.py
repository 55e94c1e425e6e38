"""Padding of timm's ``tf_`` models, in a program for images of any size."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def constant_padding(module: nn.Module) -> Iterator[None]:
    """Within, timm's convolutions that pad by the size of their input pad by a constant.

    Such a layer of kernel k, stride s and dilation d gives ceil(side / s) positions. If the side is a multiple of s,
    its padding is (k - 1) d + 1 - s, or none where this is negative, whatever the side is. A network for masks pads its
    images to a multiple of its own stride first, so this holds for each of its layers. A program with the general
    padding has conditions on each size of each layer, and takes minutes to make.

    Args:
        module: holds the layers. It is left as it was.
    """
    from timm.layers.conv2d_same import Conv2dSame

    layers = [one for one in module.modules() if isinstance(one, Conv2dSame)]
    for one in layers:
        one.forward = MethodType(_forward, one)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for one in layers:
            del one.forward


def _forward(layer: Any, x: Tensor) -> Tensor:
    """The convolution (N, C, H, W) -> (N, C', H / s, W / s)."""
    (down, right), around = layer.stride, list[int]()
    for kernel, stride, dilation in zip(
        reversed(layer.kernel_size), (right, down), reversed(layer.dilation), strict=True
    ):
        width = max((kernel - 1) * dilation + 1 - stride, 0)
        around += [width // 2, width - width // 2]
    return functional.conv2d(
        functional.pad(x, around), layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups
    )
