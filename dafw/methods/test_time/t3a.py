"""T3A: a label head of the directions of what was predicted surest."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.entropy import entropy
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.distributed import gather_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.supports import Supports
from dafw.problems import Outputs
from dafw.ranges import NonNegativeInt


class T3A(TestTimeMethod):
    """Replaces the label head by centroids of the features that it predicted surest. Nothing learns by gradients.

    Loss: none. Each class has a set of supports. It starts with the label head's row of weights, by the class that the
    head itself gives to it. Each row's feature joins the set of its predicted class, with the entropy of its
    prediction. The ``per_class`` supports of least entropy stay. Served are the products of the features (n, d) with
    the directions (K, d) of the sums of the normalised supports: (n, K), after the batch has joined.

    Iwasawa and Matsuo, Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization, NeurIPS 2021
    (https://openreview.net/forum?id=e_yvNqkJKAW, recalled). The supports are those of the rows of all ranks.

    Args:
        network: see the base; its label head must be one linear layer.
        per_class: supports of each class (the authors' code searches 1, 5, 20, 50, 100 and all; 100 is our choice);
            ``None``: all. With 0 the label head's scores are served, as in the control.
        drop_worst: with ``per_class`` ``None``, do as the authors' code, which drops the support of largest entropy of
            each class at every batch where it means to keep all.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Raises:
        UserError: if the label head is no linear layer.
    """

    default_learns = "nothing"
    control: ClassVar[dict[str, Any]] = {"per_class": 0}
    search_space: ClassVar[dict[str, Any]] = {"per_class": [1, 5, 20, 50, 100, None]}
    first_served_reason = "the first batch joins the supports before it is served"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        per_class: NonNegativeInt | None = 100,
        drop_worst: bool = False,
        **base,
    ) -> None:
        super().__init__(network, learns="nothing", **base)
        self.per_class = per_class
        self.supports = Supports(self.num_classes, per_class, drop_worst=drop_worst)
        rows = getattr(network.label_head(), "weight", None)
        if not isinstance(rows, Tensor) or rows.shape != (self.num_classes, network.num_features):
            raise UserError(
                "T3A replaces a label head of one linear layer, and this network has another: leave out"
                " model.network.head_width, or train with model.network.bottleneck"
            )
        logits = network.label_head()(rows.detach())
        self.supports.fill(rows.detach(), logits.argmax(1), entropy(logits.detach()))

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See the base; the products with the centroids (n, K)."""
        if self.per_class == 0:
            return outputs.logits
        features, new = full_precision(outputs.features), slice(batch.num_again, None)
        logits = gather_rows(outputs.logits[new])
        self.supports.add(gather_rows(features[new]), logits.argmax(1), entropy(logits))
        return features.to(self.supports.features) @ self.supports.centroids().T
