"""The ascent step of sharpness-aware minimisation: the gradient is taken uphill of the weights and applied at them.

``with perturbed(parameters, ascent(gradients, rho)):`` moves the parameters. A gradient computed inside is SAM's
gradient; it is applied after the block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def ascent(gradients: Sequence[Tensor], rho: float, eps: float = 1e-12) -> list[Tensor]:
    """The step uphill, rho g / (||g|| + eps): Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412, equation 2.

    The norm is one number over all tensors. It is computed on their device; the host reads nothing.

    Args:
        gradients: gradient of the loss with respect to each parameter. On several ranks they must be those of the whole
            batch; otherwise each rank would step in its own direction.
        rho: length of the step (paper: 0.05).
        eps: makes the step zero if the gradient is zero.

    Returns:
        One tensor for each gradient, of its shape. Their joint norm is rho.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    return list(torch._foreach_mul(list(gradients), rho / (norm + eps)))


@contextmanager
def perturbed(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Moves each parameter by its step within the block, and restores the old values afterwards, to the last bit.

    The values are cloned and copied back, since adding a step and subtracting it again would round. A graph made before
    the block must not be differentiated within or after it.

    Args:
        parameters: the tensors to move, in place.
        steps: one tensor for each parameter, of its shape.

    Raises:
        ValueError: if there is not one step for each parameter.
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
