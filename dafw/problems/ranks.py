"""Counts over all ranks, for losses that are means over a number of things that differs from rank to rank."""

import torch
import torch.distributed as dist
from torch import Tensor


def share_of_all(count: Tensor) -> Tensor:
    """The factor that turns a sum over this rank's things into a loss of which the ranks' mean is the mean over all.

    The ranks' gradients are averaged. So a sum s_r over c_r things enters as R s_r / (c_1 + ... + c_R).

    Args:
        count: number c_r of the things on this rank, a scalar that needs no gradient; it may be 0.

    Returns:
        R / max(1, c_1 + ... + c_R), in the dtype of ``count``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return count.clamp_min(1).reciprocal()
    total = count.detach().clone()
    dist.all_reduce(total)
    return dist.get_world_size() / total.clamp_min(1)


def weight_of_rank(count: int, like: Tensor) -> Tensor | float:
    """The factor that turns a mean over this rank's things into a loss of which the ranks' mean is the mean over all.

    Args:
        count: number c_r of the things on this rank.
        like: a tensor of the dtype and on the device of the result.

    Returns:
        R c_r / (c_1 + ... + c_R); 1 in one process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1.0
    return count * share_of_all(torch.full((), count, dtype=like.dtype, device=like.device))
