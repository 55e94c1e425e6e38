"""Sharpness-aware minimisation's step aside: the gradient is taken a little uphill of the weights and applied at them.

``with perturbed(parameters, ascent(gradients, rho)):`` moves the parameters; what is differentiated inside is SAM's
gradient, to be applied after it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def ascent(gradients: Sequence[Tensor], rho: float, eps: float = 1e-12) -> list[Tensor]:
    """The step uphill, rho g / (||g|| + eps): Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412, equation 2.

    The norm is one number over all tensors, computed where they are; nothing is read by the host.

    Args:
        gradients: of the loss with respect to each parameter; on several ranks those of the whole batch, or each rank
            would step aside in a direction of its own.
        rho: length of the step (paper: 0.05).
        eps: keeps the step of a zero gradient zero.

    Returns:
        One tensor for each gradient, of its shape; together their norm is rho.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    return list(torch._foreach_mul(list(gradients), rho / (norm + eps)))


@contextmanager
def perturbed(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Within, each parameter is moved by its step; afterwards it holds its old values, to the last bit.

    The values are kept and copied back, as adding a step and taking it away again would round. A graph made before
    must not be differentiated within or after.

    Args:
        parameters: what to move, in place.
        steps: one tensor for each parameter, of its shape.

    Raises:
        ValueError: not one step for each parameter.
    """
    if len(parameters) != len(steps):
        raise ValueError(f"{len(steps)} steps for {len(parameters)} parameters")
    moved = [parameter.detach() for parameter in parameters]
    kept = [parameter.clone() for parameter in moved]
    torch._foreach_add_(moved, list(steps))
    try:
        yield
    finally:
        torch._foreach_copy_(moved, kept)
