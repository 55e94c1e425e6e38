"""Gradient reversal: the identity forwards, a scaled sign change backwards."""

from typing import Any

import torch
from torch import Tensor


class _Reversal(torch.autograd.Function):
    """``scale`` gets no gradient: it is the value of a schedule, not a parameter."""

    # Without setup_context: with it, torch would bind the arguments to the signature at each call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float | Tensor) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * -ctx.scale, None


def reverse_gradient(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Return ``x`` itself; gradients that flow back through it are multiplied by ``-scale``.

    R(x) = x and dR/dx = -scale * I: Ganin et al., JMLR 17 (2016), section 4, https://arxiv.org/abs/1505.07818.
    A critic after it descends its own loss, unscaled. The layers before it ascend that loss, times ``scale``.

    Args:
        x: any shape and floating dtype.
        scale: a number, or a tensor without dimensions (so that a value computed on the device is never read back).

    Returns:
        An alias of ``x``: the same storage, shape and dtype.
    """
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_
