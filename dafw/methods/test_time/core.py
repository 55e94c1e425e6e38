"""Core: alpha-BN, and scale and shift that learn to confuse fewer classes."""

from typing import Any, ClassVar

from dafw.data.batch import Batch
from dafw.losses.confusion import class_confusion
from dafw.methods.base import Losses
from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import PositiveFloat


class Core(TestTimeMethod):
    """Source and batch statistics are mixed; scale and shift of all normalisations learn to confuse fewer classes.

    Loss: class confusion(logits), logits (n, K): the mean over classes of the share of a class's softened predictions
    that falls on other classes, see :func:`~dafw.losses.confusion.class_confusion`. It is over the rows of all ranks.
    Batch normalisation normalises by (1 - a) source + a batch with a = ``target_weight`` and the batch's unbiased
    variance (alpha-BN). Served are the logits before the step. The control, in which nothing learns, is alpha-BN.

    You et al., Test-time Batch Statistics Calibration for Covariate Shift, 2021, https://arxiv.org/abs/2110.04065. Only
    alpha-BN is the paper's for certain. Its abstract says that Core optimises a "pairwise class correlation" online.
    That loss is not known to us, and there is no code of the authors. Class confusion, of Jin et al., ECCV 2020,
    https://arxiv.org/abs/1912.03699, is our reading of these words. So are the parameters that learn, the optimiser and
    its rate. No number here reproduces one of the paper.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        temperature: divides the logits before the softmax (MCC: 2.5).
        optimizer: see :class:`~dafw.methods.base.Method` (ours: Tent's Adam).
        lr: learning rate (ours: Tent's 0.001).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`; ``target_weight`` is 0.1 in the benchmark
            mariodoebler/test-time-adaptation, for batches of one. The paper's alpha is the weight of the source, as
            recalled.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "target_weight": (0.05, 0.9)}
    default_statistics: ClassVar[StatisticsRule] = "mixed"
    default_learns: ClassVar[Learns] = "norm"

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, temperature: PositiveFloat = 2.5, optimizer: str = "adam", lr: float = 1e-3, **base
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.temperature = temperature

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The class confusion of the rows of all ranks: (n, K) -> scalar."""
        return {"confusion": class_confusion(outputs.logits, temperature=self.temperature)}
