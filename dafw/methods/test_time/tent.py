"""Tent: the entropy of the predictions falls."""

from typing import Any, ClassVar

from dafw.data.batch import Batch
from dafw.losses.entropy import mean_entropy
from dafw.methods.base import Losses
from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod
from dafw.nn.network import Network
from dafw.problems import Outputs


class Tent(TestTimeMethod):
    """Scale and shift of all normalisations learn to make predictions surer.

    Loss: mean_i H(softmax(logits_i)), logits (n, K), over the rows of all ranks. One step a batch. Batch normalisation
    normalises by the batch. Served are the logits before the step.

    Wang et al., Tent: Fully Test-time Adaptation by Entropy Minimization, ICLR 2021, https://arxiv.org/abs/2006.10726.
    The paper takes Adam with a rate of 0.001 on CIFAR-C (batches of 200), and SGD with 0.00025 and momentum 0.9 on
    ImageNet-C (batches of 64). It starts anew on each corruption, which is ``reset: shift`` here. In the authors' code
    the network is in training mode, so that dropout is active; here it is not.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        optimizer: see :class:`~dafw.methods.base.Method` (paper, CIFAR-C: Adam).
        lr: learning rate (paper, CIFAR-C: 0.001).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "optimizer": ["adam", "momentum"]}
    default_statistics: ClassVar[StatisticsRule] = "batch"
    default_learns: ClassVar[Learns] = "norm"

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, optimizer: str = "adam", lr: float = 1e-3, **base
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The mean entropy: (n, K) -> scalar."""
        return {"entropy": mean_entropy(outputs.logits)}
