"""Common base of the digit datamodules: a scale, a size in pixels, a folder, and augmentations without flips."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.domain import ArrayImages, Domain
from dafw.data.images import ImageOrPath
from dafw.data.preparing import Squashed
from dafw.errors import UserError, choose
from datamodules import digit_images
from datamodules.base import DomainDataModule
from datamodules.digit_images import Images


class DigitDomains(DomainDataModule):
    """Domains of digits as uint8 RGB images (3, size, size). No augmentation mirrors them.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        scale: ``small`` (no files needed) or ``full``.
        size: height and width of the images, in pixels.
        root: folder with the files of ``full``.
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: for an unknown scale, or a size below 8.
    """

    flips: ClassVar[bool] = False
    size_is_side: ClassVar[bool] = True

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        scale: Literal["small", "full"] = "small",
        size: int = 28,
        root: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(source, target, **base)
        choose("scale", scale, ("small", "full"))
        if size < 8:
            raise UserError(f"data.size must be at least 8 pixels, not {size}")
        self.scale, self.size, self.root = scale, size, root

    def view(self, name: str) -> Callable[[Any], Any]:
        """A named augmentation without flips, since a flip can turn one digit into another."""
        from dafw.data.transforms import named_view

        return named_view(name, self.size, flip=False)

    def evaluation_transform(self) -> Callable[[ImageOrPath], Tensor]:
        """From a file or an image of Pillow to uint8 (3, size, size): both sides are scaled, as those of a digit are.

        See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`.
        """
        return Squashed(self.size)


def make_domain(name: str, images: Images, labels: NDArray[np.int64], ids: Sequence[str], size: int) -> Domain:
    """A domain of RGB images (3, size, size).

    Args:
        name: name of the domain.
        images: uint8 (n, H, W), grey, or (n, H, W, 3).
        labels: (n,).
        ids: a name for each image.
        size: height and width to scale the images to, in pixels.
    """
    images = digit_images.resize(images, size)
    if images.ndim == 3:
        images = np.broadcast_to(images[..., None], (*images.shape, 3))
    return Domain(name, ArrayImages(images), cast(Sequence[Any], labels), ids)
