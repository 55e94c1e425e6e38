"""BatchNormAdapt: the start model, normalised by statistics of the stream: BN-1, BN-EMA and alpha-BN."""

from typing import Any, ClassVar

from dafw.methods.test_time.base import StatisticsRule, TestTimeMethod
from dafw.nn.network import Network
from dafw.nn.statistics import batch_norms


class BatchNormAdapt(TestTimeMethod):
    """No parameter learns. Batch normalisation normalises by statistics of the stream in place of the source's.

    Loss: none. Served are the logits (n, K). ``statistics`` says what the three methods of this kind differ in:

    - ``batch``, BN-1: mean and biased variance of the batch over all ranks. Nado et al., Evaluating Prediction-Time
      Batch Normalization for Robustness under Covariate Shift, 2020, https://arxiv.org/abs/2006.10963.
    - ``average``, BN-EMA: running statistics that follow the batches with weight ``statistics_momentum``. Each layer
      takes in the batch first and is then normalised by the result, in one pass. The benchmark
      mariodoebler/test-time-adaptation makes two passes: its first normalises each layer by the batch alone, so that
      later layers take in other values.
    - ``mixed``, alpha-BN: (1 - a) source + a batch with a = ``target_weight`` and the batch's unbiased variance. You
      et al., Test-time Batch Statistics Calibration for Covariate Shift, 2021, https://arxiv.org/abs/2110.04065. Their
      alpha is the weight of the source, as recalled; the benchmark's 0.1 is that of the batch. Schneider et al., 2020,
      https://arxiv.org/abs/2006.16971, take a = n / (n + N) for batches of n and a prior of N samples.

    A channel with one value, such as one image behind pooling, has no variance. It keeps the source's.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K), with batch normalisation.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`; 0.1 for both weights is the benchmark's.

    Raises:
        UserError: if the network has no batch normalisation.
    """

    control: ClassVar[dict[str, Any]] = {"statistics": "running"}
    search_space: ClassVar[dict[str, Any]] = {"statistics": ["batch", "average", "mixed"], "target_weight": (0.05, 0.9)}
    default_statistics: ClassVar[StatisticsRule] = "batch"
    default_learns = "nothing"

    def __init__(self, network: Network, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, learns="nothing", **base)
        batch_norms(self.network, type(self).__name__)
