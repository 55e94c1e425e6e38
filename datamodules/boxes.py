"""The base of datamodules whose labels are boxes."""

from collections.abc import Callable
from typing import Any

from datamodules.base import DomainDataModule


class BoxDomains(DomainDataModule):
    """Images with boxes; a label is a mapping with ``boxes`` (k, 4), ``labels`` (k,) and perhaps ``crowd`` (k,).

    The words of ``augment`` and the views of methods are ``weak`` and ``strong``, which move boxes with the image and
    keep its size, see :mod:`dafw.data.box_transforms`.
    """

    def augmentation(self) -> Callable[[Any], Any] | None:
        """The augmentation of training samples."""
        return self.view(self.augment, "data.augment") if isinstance(self.augment, str) else self.augment

    def view(self, name: str, key: str = "view of boxes") -> Callable[[Any], Any]:
        """The augmentation ``weak`` or ``strong``, for an extra view of an image.

        Raises:
            UserError: for another one.
        """
        from dafw.data.box_transforms import box_transform  # imports torchvision

        return box_transform(name, key, flip=self.flips)

    def _present(self, name: str) -> set[str] | None:
        return None
