"""The choice nobody has in practice: by the target's labels."""

from typing import ClassVar

from torch import Tensor

from dafw.selection.source_accuracy import accuracy


class OracleAccuracy:
    """Accuracy on the target's validation split: the only criterion that takes target labels. Always label it as such.

    Attributes:
        name: its key in results.
        higher_is_better: the direction of a good score.
        reference: where the practice is examined.
    """

    name: ClassVar[str] = "oracle"
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[str] = "Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Accuracy in [0, 1], a scalar in float64; nan if any logit is not finite.

        Args:
            logits: (N, K), of the target's validation split.
            labels: (N,) integers.
        """
        return accuracy(logits, labels)
