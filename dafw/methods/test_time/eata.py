"""EATA and ETA: entropy falls on sure rows that differ from the mean prediction. RDumb: ETA that starts anew."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.losses.entropy import entropy
from dafw.methods.base import Losses
from dafw.methods.optimisation import trained_parameters
from dafw.methods.source_statistics import UsesSource
from dafw.methods.test_time.base import Learns, Reset, StatisticsRule, TestTimeMethod
from dafw.nn.distributed import sum_over_ranks, world_size
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveInt


class ETA(TestTimeMethod):
    """Scale and shift of all normalisations learn from sure rows that are unlike the mean prediction so far.

    Loss: the mean over the rows that count of exp(E - H_i) H_i, where H_i is the entropy of row i, E = ``margin`` ln K,
    and no gradient flows through the weight exp(E - H_i); logits (n, K). A row counts if H_i < E and, from the second
    batch on, |cos(p_i, m)| < ``redundancy``. m (K,) is the mean of the probabilities of rows that counted: of the first
    batch, then 0.9 m + 0.1 of each later one. If no row of any rank counts there is no step. Means are over the rows of
    all ranks. Served are the logits before the step. Each step reads on the host whether a row counts.

    Niu et al., Efficient Test-Time Model Adaptation without Forgetting, ICML 2022, https://arxiv.org/abs/2204.02610,
    without its regulariser. The defaults are those of the authors' code for ImageNet-C, with batches of 64; it takes a
    redundancy of 0.4 for CIFAR-10-C, and the benchmark mariodoebler/test-time-adaptation 0.1 for CIFAR-100-C. Their
    reset leaves m as it is; here it starts anew too.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        margin: of the entropy, as a share of ln K (paper: 0.4).
        redundancy: greatest cosine of a row that counts (paper, ImageNet-C: 0.05).
        optimizer: see :class:`~dafw.methods.base.Method` (paper: SGD with momentum 0.9).
        lr: learning rate (paper, ImageNet-C: 0.00025).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "redundancy": [0.05, 0.1, 0.4]}
    default_statistics: ClassVar[StatisticsRule] = "batch"
    default_learns: ClassVar[Learns] = "norm"
    host_reads: ClassVar[int] = 1
    mean_probability: Tensor
    begun: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        margin: NonNegativeFloat = 0.4,
        redundancy: NonNegativeFloat = 0.05,
        optimizer: str = "momentum",
        lr: float = 2.5e-4,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.margin, self.redundancy = margin * math.log(self.num_classes), redundancy
        self.register_buffer("mean_probability", torch.zeros(self.num_classes))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The weighted entropy of the rows that count: (n, K) -> scalar."""
        entropies = entropy(outputs.logits)
        fixed, probabilities = entropies.detach(), full_precision(outputs.logits.detach()).softmax(1)
        likeness = F.cosine_similarity(self.mean_probability[None].to(probabilities), probabilities).abs()
        shares = self.used((fixed < self.margin) & ((likeness < self.redundancy) | ~self.begun))
        self._follow(shares, probabilities)
        return {"entropy": (shares * (self.margin - fixed).exp() * entropies).sum()}

    def _follow(self, shares: Tensor, probabilities: Tensor) -> None:
        """Takes the mean probabilities of the rows that count into m, if there are any."""
        total = sum_over_ranks(torch.cat([shares.sum()[None], (shares[:, None] * probabilities).sum(0)])) / world_size()
        any_counts, mean = total[0] > 0.5, total[1:].to(self.mean_probability)
        mean = torch.where(self.begun, torch.lerp(self.mean_probability, mean, 0.1), mean)
        self.propose(
            mean_probability=torch.where(any_counts, mean, self.mean_probability), begun=self.begun | any_counts
        )


class EATA(UsesSource, ETA):
    """ETA whose parameters stay close to the start where the source needs them.

    Loss: that of :class:`ETA` plus ``weight`` sum_j F_j (theta_j - theta0_j)^2 over the P parameters that learn, where
    theta0 is the start; logits (n, K). F (P,) is the diagonal of a Fisher information: the mean over batches of the
    square of the gradient of the batch's mean cross-entropy with the model's own predictions as labels. The batches are
    test samples of the source; their labels are not used. A step without rows leaves out the second term too.

    Niu et al., Efficient Test-Time Model Adaptation without Forgetting, ICML 2022, https://arxiv.org/abs/2204.02610.
    The factor 1/2 that elastic weight consolidation has is absent, as in the authors' code. F depends on the size of
    its batches, which is therefore an argument.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: of the second term (paper: 2000 for ImageNet-C, 1 for CIFAR-10-C).
        fisher_samples: number of samples for F (paper: 2000).
        fisher_batch: size of a batch for F (authors' code: 64).
        base: see :class:`ETA`.
    """

    search_space: ClassVar[dict[str, Any]] = {**ETA.search_space, "weight": (1.0, 5000.0)}
    fisher: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 2000.0,
        fisher_samples: PositiveInt = 2000,
        fisher_batch: PositiveInt = 64,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.fisher_samples, self.fisher_batch = weight, fisher_samples, fisher_batch
        self.learnt = [name for name, one in self.network.named_parameters() if one.requires_grad]
        self.register_buffer("fisher", torch.zeros(sum(one.numel() for one in trained_parameters(self.network))))

    @property
    def source_use(self) -> str:
        """See the base; nothing if the second term has no part in the training."""
        return super().source_use if self.learns != "nothing" and self.weight else "nothing"

    def take_from_source(self) -> None:
        """Fills F."""
        by = self.stream_statistics
        if self.source_use != "nothing":
            found = self.source_statistics(
                "fisher",
                self.fisher_information,
                split="test",
                count=self.fisher_samples,
                batch_size=self.fisher_batch,
                settings={"statistics": asdict(by) if by else None, "learnt": self.learnt},
            )
            self.fisher.copy_(found["fisher"])

    def fisher_information(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """F (P,) of the start model, normalised as in the stream."""
        parameters, squares = trained_parameters(self.network), []
        with self.layout.temporarily(stream=self.stream_statistics, track=False):
            for batch in batches:
                logits = full_precision(self.forward_rows(batch.x, 0, self.network, batch.sizes).logits)
                loss = F.cross_entropy(logits, logits.detach().argmax(1))
                gradients = torch.autograd.grad(loss, parameters)
                squares.append(torch.cat([gradient.flatten() for gradient in gradients]).square())
        return {"fisher": torch.stack(squares).mean(0)}

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """See the class."""
        own, start = (dict(model.named_parameters()) for model in (self.network, self.start.module))
        moved = [(own[name] - start[name]).flatten() for name in self.learnt]
        distance = (self.fisher * torch.cat(moved).square()).sum()
        return {**super().adapt(outputs, batch), "distance": self.weight * distance}


class RDumb(ETA):
    """ETA that starts anew after every 1000 steps: the honest control of a long stream.

    Loss: that of :class:`ETA`, logits (n, K). Weights, statistics, the optimiser's state and the mean prediction return
    to the start after every ``reset`` steps.

    Press et al., RDumb: A simple approach that questions our progress in continual test-time adaptation, NeurIPS 2023,
    https://arxiv.org/abs/2306.05401. The number of steps is recalled; it was chosen on ImageNet-C with batches of 64.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        reset: when it starts anew (paper: after 1000 steps).
        base: see :class:`ETA`.
    """

    search_space: ClassVar[dict[str, Any]] = {**ETA.search_space, "reset": [125, 500, 1000, 2000]}

    def __init__(self, network: Network, *, reset: Reset = 1000, **base) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, reset=reset, **base)
