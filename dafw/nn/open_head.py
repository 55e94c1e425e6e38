"""A label head with one more output than there are classes."""

from torch import Tensor, nn


class OpenHead(nn.Module):
    """Wraps a head so that it returns the known classes, (N, d) -> (N, K), and hides a last output for "none of them".

    Args:
        head: (N, d) -> (N, K + 1).
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the known classes, (N, K)."""
        return self.open(features)[:, :-1]

    def open(self, features: Tensor) -> Tensor:
        """All logits, (N, K + 1); the last one is that of "none of them"."""
        logits: Tensor = self.head(features)
        return logits

    def margin(self, features: Tensor) -> Tensor:
        """The last logit minus the largest of the others, (N,): positive if "none of them" is the likeliest."""
        logits = self.open(features)
        return logits[:, -1] - logits[:, :-1].amax(1)
