"""The soft Dice loss of masks."""

import torch
from torch import Tensor

from dafw.data.padding import IGNORE
from dafw.nn.distributed import sum_over_ranks
from dafw.nn.precision import full_precision


def soft_dice(logits: Tensor, y: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """The mean over classes of 1 - (2 sum p t + s) / (sum p^2 + sum t^2 + s), the sums over all labelled pixels.

    Milletari et al., V-Net, 3DV 2016, https://arxiv.org/abs/1606.04797, for several classes, as in the code of AdaWAC.

    Args:
        logits: (n, K, H, W); p is their softmax.
        y: masks (n, H, W), 255 where a pixel has no label; t is 1 for the class of a pixel, else 0.
        smooth: s; a class without a pixel and without a prediction has the loss 0.

    Returns:
        A scalar, the loss of all rows of all ranks, the same on each.
    """
    p, labelled = full_precision(logits).softmax(1), (y != IGNORE)[:, None]
    classes = torch.arange(logits.shape[1], device=y.device)
    t = (y[:, None] == classes[:, None, None]).to(p.dtype)
    p, dims = p * labelled, (0, 2, 3)
    both, own, theirs = sum_over_ranks(torch.stack([(p * t).sum(dims), p.square().sum(dims), t.sum(dims)]))
    shares: Tensor = (2 * both + smooth) / (own + theirs + smooth)
    return 1 - shares.mean()
