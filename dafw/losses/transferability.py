"""Transferability: how likely a sample's class is one that both domains have, and row weights made from such scores."""

import math

import torch
from torch import Tensor

from dafw.losses.entropy import entropy
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def transferability(scores: Tensor, logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Similarity to the source minus uncertainty about the class: d - H(p) / log K.

    d = sigmoid(scores) is the probability of the source according to a critic that the features are not trained to
    deceive; p = softmax(logits / temperature).  You et al., "Universal Domain Adaptation", CVPR 2019. The value is the
    weight of a target sample: it is high if its class is one of the source's. The weight of a source sample is the
    negative.

    Args:
        scores: (N,) or (N, 1), logits of the critic; positive for the source.
        logits: (N, K), K at least 2.
        temperature: divides the logits.

    Returns:
        (N,), between -1 and 1.

    Raises:
        ValueError: ``scores`` is not one number for each row, or there is only one class.
    """
    if scores.numel() != logits.shape[0] or logits.shape[1] < 2:
        shapes = f"{tuple(scores.shape)} and {tuple(logits.shape)}"
        raise ValueError(f"scores and logits must be (N,) and (N, K), K at least 2, not {shapes}")
    uncertainty = entropy(full_precision(logits) / temperature) / math.log(logits.shape[1])
    return torch.sigmoid(full_precision(scores)).view(-1) - uncertainty


def mean_one(values: Tensor) -> Tensor:
    """Weights (x - min x) / (mean x - min x): the least is 0, and their mean over the rows of all ranks is 1.

    The code of You et al., CVPR 2019, does the same with a domain's values in a batch: it scales them to [0, 1] and
    then divides by their mean.

    Args:
        values: (N,), those of one domain; on several ranks this rank's rows. No gradient flows through.

    Returns:
        (N,), each between 0 and the number of all ranks' rows; all 1 where the values are equal.
    """
    values = values.detach()
    rows = gather_rows(values)
    least = rows.min()
    spread = rows.mean() - least
    return torch.where(spread > 0, (values - least) / spread, torch.ones_like(values))
