"""How likely a sample is of a class that both domains have, and weights of rows made of it."""

import math

import torch
from torch import Tensor

from dafw.losses.entropy import entropy
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def transferability(scores: Tensor, logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Similarity to the source less uncertainty of the class: d - H(p) / log K.

    d = sigmoid(scores) is what a critic that no feature deceives takes for the probability of the source, p =
    softmax(logits / temperature).  You et al., "Universal Domain Adaptation", CVPR 2019: the weight of a target sample,
    high if its class is one of the source's; of a source sample it is the negative.

    Args:
        scores: (N,) or (N, 1), of the critic; positive for the source.
        logits: (N, K), K at least 2.
        temperature: by which the logits are divided.

    Returns:
        (N,), between -1 and 1.

    Raises:
        ValueError: ``scores`` is not one number for each row, or there is one class alone.
    """
    if scores.numel() != len(logits) or logits.shape[1] < 2:
        shapes = f"{tuple(scores.shape)} and {tuple(logits.shape)}"
        raise ValueError(f"scores and logits must be (N,) and (N, K), K at least 2, not {shapes}")
    uncertainty = entropy(full_precision(logits) / temperature) / math.log(logits.shape[1])
    return torch.sigmoid(full_precision(scores)).view(-1) - uncertainty


def mean_one(values: Tensor) -> Tensor:
    """Weights (x - min x) / (mean x - min x): from 0 up, with mean 1 over the rows of all ranks.

    It is what the code of You et al., CVPR 2019, makes of a domain's values in a batch: scaled to [0, 1], then divided
    by their mean.

    Args:
        values: (N,), one domain's; on several ranks this rank's rows. No gradient flows through.

    Returns:
        (N,), each between 0 and the number of all ranks' rows; all 1 where the values are equal.
    """
    values = values.detach()
    rows = gather_rows(values)
    least = rows.min()
    spread = rows.mean() - least
    return torch.where(spread > 0, (values - least) / spread, torch.ones_like(values))
