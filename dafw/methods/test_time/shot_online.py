"""SHOT, one step for each batch of a stream."""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import choose
from dafw.losses.entropy import marginal_entropy, mean_entropy
from dafw.losses.pseudo_labels import confident_labels
from dafw.methods.base import Losses
from dafw.methods.source_free.shot import pseudo_labels
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.distributed import gather_rows, mean_weights, own_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat


class SHOTOnline(TestTimeMethod):
    """Keeps the label head, and trains features that it classifies surely and diversely, a step for each batch.

    Loss: weight (mean_i H(p_i) - H(mean_i p_i)) + pseudo_weight CE(logits, labels), the mean over the rows that have a
    label: features (n, d), logits (n, K), probabilities p. Labels are the row's own class where its probability is at
    least ``confidence``, or the nearest centroid's of the batch (``labels: centroids``), see
    :func:`~dafw.methods.source_free.shot.pseudo_labels`. Served are the logits before the step.

    Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, https://arxiv.org/abs/2002.08546, which
    trains for epochs. The form for a stream is that of the code of T3A's authors (matsuolab/T3A): Adam on all but the
    head, in evaluation mode, at 0.1, 1 or 10 times the rate of the training. Centroids of a batch are our reading; we
    know no code that has them. Where no row has a label, their code has no number; here the term is 0. Means and
    centroids are those of the rows of all ranks.

    Args:
        network: see the base.
        weight: weight of the first term.
        pseudo_weight: weight of the second (T3A's code: 0.1; SHOT-IM: 0).
        labels: ``confident`` or ``centroids``, see above.
        confidence: least probability of a confident label (T3A's code: 0.9).
        epsilon: constant added inside the logarithm of the mean's entropy (T3A's code: 1e-5).
        optimizer: see the base (T3A's code: Adam).
        lr: see the base (DomainBed's rate of training).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`. ``learns: network`` leaves the head out.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-6, 1e-2), "pseudo_weight": [0.0, 0.1, 0.3]}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 1.0,
        pseudo_weight: NonNegativeFloat = 0.1,
        labels: Literal["confident", "centroids"] = "confident",
        confidence: ClosedUnitInterval = 0.9,
        epsilon: ClosedUnitInterval = 1e-5,
        optimizer: str = "adam",
        lr: PositiveFloat = 5e-5,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.weight, self.pseudo_weight, self.confidence, self.epsilon = weight, pseudo_weight, confidence, epsilon
        self.labels = choose("labels", labels, ("confident", "centroids"))

    def choose_parameters(self) -> None:
        """See the base; of the whole network the label head is left out."""
        super().choose_parameters()
        if self.learns == "network":
            self.network.label_head().requires_grad_(False)

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """Information maximisation, and the cross-entropy with the labels."""
        rows = gather_rows(outputs.logits)
        information = mean_entropy(rows) - marginal_entropy(rows, epsilon=self.epsilon)
        terms = {"information": self.weight * information}
        if self.pseudo_weight:
            terms["pseudo"] = self.pseudo_weight * self.pseudo_loss(outputs)
        return terms

    def pseudo_loss(self, outputs: Outputs) -> Tensor:
        """The mean cross-entropy of the rows that have a label, of all ranks; 0 without any."""
        classes, sure = confident_labels(outputs.logits, self.confidence)
        if self.labels == "centroids":
            features, logits = (gather_rows(one.detach()) for one in (outputs.features, outputs.logits))
            classes, sure = own_rows(pseudo_labels(features, logits)), sure | ~sure
        each = F.cross_entropy(full_precision(outputs.logits), classes, reduction="none")
        weights, _ = mean_weights(sure, each.dtype)
        return (weights * each).sum()
