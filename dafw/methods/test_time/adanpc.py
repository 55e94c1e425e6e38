"""AdaNPC and AdaNPC-BN: the vote of the nearest features in a memory of the source that grows with the stream."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import choose
from dafw.losses.entropy import mean_entropy
from dafw.methods.base import Losses
from dafw.methods.source_statistics import UsesSource
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.distributed import gather_rows, own_rows
from dafw.nn.feature_norm import FeatureNorm
from dafw.nn.neighbours import NeighbourMemory
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class AdaNPC(UsesSource, TestTimeMethod):
    """Predicts by the nearest features of source samples and of earlier rows of the stream. No weight learns.

    Loss: none. The memory begins with the start model's features (N, d) and the labels of the source's samples. Served
    is log p, where p (n, K) are the votes of the ``neighbours`` memories with the largest cosines to a row's features
    (n, d), see :func:`~dafw.nn.neighbours.votes`. After that the rows of the batch join the memory with their predicted
    class, if their confidence is at least ``threshold``.

    Zhang et al., AdaNPC: Exploring Non-Parametric Classifier for Test-Time Adaptation, ICML 2023,
    https://arxiv.org/abs/2304.12566. The confidence here is the largest vote. The authors' code takes a softmax of the
    votes (``confidence: softmax_of_votes``), which cannot exceed e / (e + K - 1): their thresholds of 0.75 and 1.1 then
    keep no row, and their 0.1 keeps all rows of ten classes or fewer. Their memory also holds a random vector with the
    first class's label; this one does not. They search the other arguments by the accuracy on the test domain.

    The features are a statistic of the source, see :class:`~dafw.methods.source_statistics.UsesSource`. The memory has
    the rows of all ranks. A row that is not kept takes up room, so the memory grows by every row of the stream.

    Args:
        network: see the base. The method is made for one that was trained to predict so.
        neighbours: number k of voters (the authors' code: 100). With 0 the label head's scores are served, as in the
            control.
        temperature: of the votes (the authors' code: 0.1).
        confidence: ``vote`` or ``softmax_of_votes``, see above.
        threshold: least confidence of a row that joins the memory (the authors' code searches 0, 0.25, 0.75 and 1.1);
            above 1 none does.
        source_samples: use so many samples of the source; ``None`` for all.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Raises:
        UserError: see the base; when training starts, if there is neither the source nor the file of its features.
    """

    default_learns = "nothing"
    control: ClassVar[dict[str, Any]] = {"neighbours": 0}
    search_space: ClassVar[dict[str, Any]] = {
        "neighbours": [1, 5, 10, 25, 50, 100, 200],
        "temperature": [0.01, 0.05, 0.1, 0.25, 0.5],
        "threshold": [0.0, 0.25, 0.75, 1.1],
    }
    first_served_reason = "its prediction is a vote, not the label head's"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        neighbours: NonNegativeInt = 100,
        temperature: PositiveFloat = 0.1,
        confidence: Literal["vote", "softmax_of_votes"] = "vote",
        threshold: NonNegativeFloat = 0.75,
        source_samples: PositiveInt | None = None,
        **base,
    ) -> None:
        super().__init__(network, learns="nothing", **base)
        self.neighbours, self.temperature, self.threshold = neighbours, temperature, threshold
        self.confidence = choose("confidence", confidence, ("vote", "softmax_of_votes"))
        self.source_samples = source_samples
        self.memory = NeighbourMemory(network.num_features)

    def take_from_source(self) -> None:
        """Fills the memory."""
        if self.neighbours:
            found = self.source_statistics("features", self.source_features, count=self.source_samples)
            self.memory.add(self.prepared(found["features"]), found["labels"])

    def source_features(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The start model's features (N, d) of source samples, and their labels (N,)."""
        features, labels = [], []
        with torch.no_grad():
            for batch in batches:
                features.append(full_precision(self.forward_rows(batch.x, 0, self.network, batch.sizes).features).cpu())
                labels.append(batch.y.cpu())
        return {"features": torch.cat(features), "labels": torch.cat(labels)}

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See the base; log p (n, K). The rows that are new then join the memory."""
        if not self.neighbours:
            return outputs.logits
        features = self.compared(outputs)
        votes = self.vote(features)
        joins = gather_rows(votes[batch.num_again :])
        sure = (joins if self.confidence == "vote" else joins.softmax(1)).amax(1) >= self.threshold
        self.remember(gather_rows(features[batch.num_again :]), joins.argmax(1), sure)
        self.rows_used = torch.cat([self.rows_used[: batch.num_again], own_rows(sure)])
        return votes.log()

    def prepared(self, features: Tensor) -> Tensor:
        """What the memory holds of the source's features (N, d)."""
        return features

    def compared(self, outputs: Outputs) -> Tensor:
        """What is compared with the memory, (n, d)."""
        return full_precision(outputs.features)

    def remember(self, features: Tensor, labels: Tensor, sure: Tensor) -> None:
        """Lets rows of all ranks join the memory: features (m, d), classes (m,), and which are sure (m,)."""
        self.memory.add(features, labels, sure)

    def vote(self, features: Tensor) -> Tensor:
        """What the memory votes for features (n, d): (n, K)."""
        how = {"neighbours": self.neighbours, "temperature": self.temperature}
        return self.memory.vote(features, self.num_classes, **how)


class AdaNPCBN(AdaNPC):
    """AdaNPC whose features pass a normalisation that learns from the stream to make the votes surer.

    Loss: mean_i H(p_i), the entropy of the votes p (n, K) of :class:`AdaNPC`. The features (n, d) are first normalised
    by the mean and the variance of each of their d numbers over the batch, then scaled and shifted by 2 d numbers,
    which learn: one step a batch. Served is log p before the step. The rows that are sure join the memory as they were
    compared. The source's features are normalised by their own mean and variance, without scale and shift. A batch of
    one has no variance, and is only scaled and shifted.

    Zhang et al., AdaNPC: Exploring Non-Parametric Classifier for Test-Time Adaptation, ICML 2023,
    https://arxiv.org/abs/2304.12566, AdaNPC-BN. In the authors' code the entropy is that of a softmax of the votes, and
    each of its 1 or 3 steps on a batch adds the batch to the memory again. That the source's features are normalised
    too is our reading. They search the rate as 0.1, 1 and 10 times that of the training (1e-4).

    Args:
        network: see :class:`AdaNPC`.
        learns: ``norm``, scale and shift of the features, or ``nothing``.
        optimizer: see the base (authors' code: Adam).
        lr: learning rate.
        base: see :class:`AdaNPC`.

    Raises:
        UserError: see :class:`AdaNPC`; for another ``learns``.
    """

    control: ClassVar[dict[str, Any]] = {"neighbours": 0, "learns": "nothing"}
    search_space: ClassVar[dict[str, Any]] = {**AdaNPC.search_space, "lr": (1e-5, 1e-2)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        learns: Literal["norm", "nothing"] = "norm",
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-4,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        choose("learns", learns, ("norm", "nothing"))
        self.learns = learns
        if self.learns == "norm":
            network.requires_grad_(False)
        self.feature_norm = FeatureNorm(network.num_features).to(network.shift)
        self._joins: tuple[Tensor, Tensor, Tensor] | None = None
        self.eval()

    def prepared(self, features: Tensor) -> Tensor:
        """See the base; normalised by their own statistics."""
        return self.feature_norm.normalised(features, over_ranks=False)

    def compared(self, outputs: Outputs) -> Tensor:
        """See the base; normalised by those of the batch, scaled and shifted."""
        found: Tensor = self.feature_norm(full_precision(outputs.features))
        return found

    def remember(self, features: Tensor, labels: Tensor, sure: Tensor) -> None:
        """See the base; after the step, so that no row votes for itself."""
        self._joins = features, labels, sure

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The mean entropy of the votes: (n, d) -> scalar."""
        return {"entropy": mean_entropy(self.vote(self.compared(outputs)).log())}

    def commit(self, batch: Batch) -> None:
        """As the base; the rows of the step join the memory."""
        super().commit(batch)
        if self._joins is not None:
            self.memory.add(*self._joins)
            self._joins = None
