"""The module that is exported: images to the probabilities of the served network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class ServedClasses(nn.Module):
    """Images (N, C, H, W) of uint8 to ``probabilities`` (N, K) float32, as the method serves them on the target.

    A method that rejects samples adds ``unknown`` (N,) float32, the margin by which each is held to be of no known
    class, and ``known`` (N,) bool, whether it is positive not.

    Args:
        method: the trained method.
        resize: from images of any size to those that the network takes; ``None``: they come as it takes them.
    """

    def __init__(self, method: Any, resize: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.method, self.resize = method, resize

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        outputs = self.method(images if self.resize is None else self.resize(images))
        found = {"probabilities": outputs.logits.float().softmax(1)}
        unknown = self.method.unknown_scores(outputs)
        return found if unknown is None else found | {"unknown": unknown.float(), "known": ~(unknown > 0)}
