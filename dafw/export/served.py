"""The module that is exported: images to the probabilities of the served network."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from dafw.errors import UserError
from dafw.export.folder import Kind
from dafw.problems import Classification, Problem, Segmentation


class Served(nn.Module):
    """Images (N, C, H, W) to ``probabilities``, as a method serves them on the target; :func:`served` makes one.

    Images are of uint8, or floating point in [0, 1]. A program is for the kind of numbers that it was traced with.

    Args:
        method: the trained method, which is shared and not copied.
        resize: from images of any size to those that the network takes; ``None``: they come as it takes them.
    """

    #: What is predicted, a key of :data:`KINDS`.
    kind: ClassVar[Kind]

    def __init__(self, method: Any, resize: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.method, self.resize = method, resize

    def outputs(self, images: Tensor) -> Any:
        """The method's outputs of images."""
        return self.method(images if self.resize is None else self.resize(images))


class ServedClasses(Served):
    """Images to ``probabilities`` (N, K) float32.

    A method that rejects samples adds ``unknown`` (N,) float32, the margin by which each is held to be of no known
    class, and ``known`` (N,) bool, whether it is positive not.
    """

    kind: ClassVar[Kind] = "classification"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        outputs = self.outputs(images)
        found = {"probabilities": outputs.logits.float().softmax(1)}
        unknown = self.method.unknown_scores(outputs)
        return found if unknown is None else found | {"unknown": unknown.float(), "known": ~(unknown > 0)}


class ServedMasks(Served):
    """Images to ``probabilities`` (N, K, H, W) float32 of each pixel, at the size of the images that went in.

    The scores of a scaled image are scaled back before their softmax.
    """

    kind: ClassVar[Kind] = "segmentation"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        scores = self.outputs(images).logits.float()
        if self.resize is not None:
            sides = (images.shape[2], images.shape[3])
            scores = functional.interpolate(scores, sides, mode="bilinear", align_corners=False)
        return {"probabilities": scores.softmax(1)}


#: By the kind of a model the problem that it solves.
KINDS: dict[Kind, type[Problem]] = {"classification": Classification, "segmentation": Segmentation}


def served(method: Any, resize: Callable[[Tensor], Tensor] | None = None) -> Served:
    """The module of a method in evaluation mode, see :class:`Served`.

    Raises:
        UserError: for boxes and other problems.
    """
    for owner in (ServedClasses, ServedMasks):
        if isinstance(method.problem, KINDS[owner.kind]):
            return owner(method, resize).eval()
    raise UserError(
        f"this run is for {method.problem.kind}, and only models of classes and of masks can be exported (boxes pass a"
        " non-maximum suppression, which no program of fixed operators holds): predict with dafw predict"
    )
