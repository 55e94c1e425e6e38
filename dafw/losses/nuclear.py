"""The nuclear norm of a batch of predictions: sure one by one, diverse together."""

from typing import Literal

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision

Scale = Literal["rows", "values"]


def negative_nuclear_norm(logits: Tensor, *, scale: Scale = "rows") -> Tensor:
    """-||P||_* / N, with P = softmax(logits) and ||P||_* the sum of its singular values; to be minimised.

    Cui et al., "Towards Discriminability and Diversity", CVPR 2020, https://arxiv.org/abs/2003.12237.
    The singular values need a decomposition, for which the host waits on a GPU; its gradient, U V^T, has no
    differences of singular values in it, so it is finite where they coincide.

    Args:
        logits: (N, K); on several ranks this rank's rows, all of which are gathered.
        scale: divide by the number of ``rows`` (the paper's form) or of singular ``values``, min(N, K).

    Returns:
        A scalar; with ``rows`` between -sqrt(min(N, K) / N) and -1 / sqrt(N K).
    """
    logits = full_precision(gather_rows(logits))
    with torch.autocast(logits.device.type, enabled=False):
        values = torch.linalg.svdvals(logits.softmax(1))
        norm: Tensor = values.sum()
        return -norm / (len(logits) if scale == "rows" else len(values))
