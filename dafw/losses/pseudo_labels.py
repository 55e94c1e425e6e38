"""Pseudo-labels: learning from confident predictions of the network itself."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.padding import IGNORE, valid_positions
from dafw.nn.distributed import sum_over_ranks
from dafw.nn.precision import full_precision


def confident_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The predicted classes, and a mask of the confident predictions.

    Args:
        logits: (N, K); no gradient flows into them.
        threshold: least probability of a confident prediction.

    Returns:
        Classes (N,) int64, and (N,) True where max_k p_k >= threshold.
    """
    confidence, classes = full_precision(logits.detach()).softmax(1).max(1)
    return classes, confidence >= threshold


def confident_cross_entropy(logits: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """1/N sum_i 1[max_k q_ik >= threshold] CE(p_i, argmax_k q_ik), where q are the teacher's probabilities.

    FixMatch: Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685, equation 4. The sum is divided by the number
    of all rows, not of the confident ones, so few confident rows weigh little.

    Args:
        logits: (N, K), the logits that learn, for instance of strongly augmented images.
        teacher: (N, K), the logits that give the pseudo-labels, for instance of the same images with weak augmentation.
            No gradient flows into them.
        threshold: least probability of a confident prediction (paper: 0.95; tllib: 0.9).

    Returns:
        A scalar; a mean over rows, so averaging over ranks gives the value of the whole batch.
    """
    classes, sure = confident_labels(teacher, threshold)
    each = F.cross_entropy(full_precision(logits), classes, reduction="none")
    return torch.where(sure, each, 0.0).mean()


@torch.no_grad()
def weighted_masks(
    logits: Tensor, threshold: float, sizes: Tensor | None = None, *, ignore_top: int = 0, ignore_bottom: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable class of each pixel, with one weight for all: the share of pixels whose class is sure.

    Tranheden et al., DACS, WACV 2021, https://arxiv.org/abs/2007.08702, section 3.3, with the share taken over all
    images of all ranks, as in the authors' code.

    Args:
        logits: (n, K, H, W).
        threshold: least probability of a sure class.
        sizes: (n, 2), height and width of each image within its padding; ``None``: every image fills the tensor.
        ignore_top: rows at the top of each image that get the weight 0; they count in the share.
        ignore_bottom: likewise at the bottom.

    Returns:
        Masks (n, H, W) uint8, 255 in the padding; weights (n, H, W); and the share, a scalar.
    """
    classes, sure = confident_labels(logits, threshold)
    n, _, height, width = logits.shape
    labels, bottom = classes.to(torch.uint8), torch.full((n, 1, 1), height, device=logits.device)
    if sizes is not None:
        inside = valid_positions(sizes, (height, width), (height, width))
        labels, sure, bottom = labels.masked_fill(~inside, IGNORE), sure & inside, sizes[:, :1, None]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    sure_pixels, pixels = sum_over_ranks(torch.stack([sure.sum(), (labels != IGNORE).sum()]).to(dtype)).unbind()
    share = sure_pixels / pixels.clamp_min(1)
    down = torch.arange(height, device=logits.device)[:, None]
    trusted = (down >= ignore_top) & (down < bottom - ignore_bottom)
    return labels, (share * trusted).expand(n, height, width), share
