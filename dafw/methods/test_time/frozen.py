"""Frozen: the start model serves the stream and learns nothing."""

from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.network import Network


class Frozen(TestTimeMethod):
    """The start model as it is: the row that every test-time method must beat.

    Loss: none. Served are the logits (n, K) of the start model, in evaluation mode with its running statistics. Rows of
    this kind are called *source* in tables, as in Hendrycks and Dietterich, Benchmarking Neural Network Robustness to
    Common Corruptions and Perturbations, ICLR 2019, https://arxiv.org/abs/1903.12261.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.
    """

    control = {}
    default_learns = "nothing"

    def __init__(self, network: Network, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, statistics="running", learns="nothing", **base)
        self.transductive_reason = ""  # a prediction depends on its own image alone
