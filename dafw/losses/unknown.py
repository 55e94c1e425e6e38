"""Losses that separate rows of no known class."""

from torch import Tensor
from torch.nn import functional as F

from dafw.nn.precision import full_precision


def unknown_bce(logits: Tensor, boundary: float = 0.5) -> Tensor:
    """-mean_i [t log u_i + (1 - t) log(1 - u_i)], u_i = softmax(logits_i)[K], the probability of "no known class".

    Saito et al., Open Set Domain Adaptation by Backpropagation, ECCV 2018, https://arxiv.org/abs/1804.10427. It is
    minimal if every u_i is t.  u_i is the sigmoid of the last logit minus the log-sum-exp of the others, so the loss
    is finite for any logits. The authors' code and the Transfer-Learning-Library add 1e-6 inside the logarithms.

    Args:
        logits: (N, K + 1); the last column belongs to "no known class".
        boundary: t, in (0, 1).

    Returns:
        A scalar.
    """
    logits = full_precision(logits)
    odds = logits[:, -1] - logits[:, :-1].logsumexp(1)
    return F.binary_cross_entropy_with_logits(odds, odds.new_full((), boundary).expand_as(odds))
