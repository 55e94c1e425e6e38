"""Class confusion: how much the predictions of a batch confuse pairs of classes."""

import torch
from torch import Tensor

from dafw.losses.entropy import entropy
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def class_confusion(logits: Tensor, *, temperature: float = 2.5) -> Tensor:
    """Mean over classes of the share of a class's predictions that goes to other classes.

    With p = softmax(logits / T) and w_i = 1 + exp(-H(p_i)) without gradient, C = sum_i w_i p_i p_i^T. Each row of C is
    divided by its sum. The value is the sum off the diagonal, divided by K.  A common factor of all w cancels.
    Jin et al., "Minimum Class Confusion", ECCV 2020, https://arxiv.org/abs/1912.03699.

    Args:
        logits: (N, K); on several ranks this rank's rows; all ranks' rows are gathered.
        temperature: T; a value above 1 softens overconfident predictions.

    Returns:
        A scalar, from 0 (every prediction certain) to 1 - 1 / K (every prediction uniform).

    Raises:
        ValueError: a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"a temperature is positive, not {temperature}")
    logits = full_precision(gather_rows(logits)) / temperature
    with torch.autocast(logits.device.type, enabled=False):
        p = logits.softmax(1)
        weights = 1 + (-entropy(logits.detach())).exp()
        confusion = (weights[:, None] * p).t() @ p
        confusion = confusion / confusion.sum(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        return (confusion.sum() - confusion.diagonal().sum()) / len(confusion)
