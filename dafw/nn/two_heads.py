"""Two label heads on the same features."""

from torch import Tensor, nn


class TwoHeads(nn.Module):
    """Combines two heads into one with the mean of their logits: (N, d) -> (N, K).

    Args:
        first: a head, (N, d) -> (N, K).
        second: another head of the same form.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, features: Tensor) -> Tensor:
        """The mean of the two heads' logits."""
        logits: Tensor = (self.first(features) + self.second(features)) / 2
        return logits
