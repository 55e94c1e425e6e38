"""What a network makes of a batch of images."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Features and scores of the same samples, row by row.

    Attributes:
        features: (N, d), what methods align across domains.
        logits: (N, K), unnormalised class scores.
    """

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, rows: slice) -> "Outputs":
        """The given samples, as views of these tensors: nothing is copied."""
        return Outputs(self.features[rows], self.logits[rows])
