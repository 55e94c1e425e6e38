"""The nuclear norm of a batch of predictions: large if each prediction is confident and all together are diverse."""

from typing import Literal

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision

Scale = Literal["rows", "values"]


def negative_nuclear_norm(logits: Tensor, *, scale: Scale = "rows") -> Tensor:
    """-||P||_* / N, to be minimised, where P = softmax(logits) and ||P||_* is the sum of the singular values of P.

    Cui et al., "Towards Discriminability and Diversity", CVPR 2020, https://arxiv.org/abs/2003.12237.
    The singular values need a decomposition, and on a GPU the host waits for it. The gradient, U V^T, contains no
    differences of singular values, so it is finite where they coincide.

    Args:
        logits: (N, K); on several ranks this rank's rows; all ranks' rows are gathered.
        scale: divide by the number of ``rows`` (the paper's form) or of singular ``values``, min(N, K).

    Returns:
        A scalar; with ``rows`` between -sqrt(min(N, K) / N) and -1 / sqrt(N K).
    """
    logits = full_precision(gather_rows(logits))
    with torch.autocast(logits.device.type, enabled=False):
        values = torch.linalg.svdvals(logits.softmax(1))
        norm: Tensor = values.sum()
        return -norm / (len(logits) if scale == "rows" else len(values))
