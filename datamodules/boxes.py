"""The base of datamodules whose labels are boxes."""

from collections.abc import Callable
from typing import Any

from dafw.errors import UserError
from datamodules.base import DomainDataModule


class BoxDomains(DomainDataModule):
    """Images with boxes; a label is a mapping with ``boxes`` (k, 4), ``labels`` (k,) and perhaps ``crowd`` (k,).

    The words of ``augment`` and the views of methods are ``weak`` and ``strong``, which move boxes with the image and
    keep its size, see :mod:`dafw.data.box_transforms`.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: if it is asked for label sets.
    """

    def __init__(self, source: str | list[str], target: str | list[str], **base: Any) -> None:
        super().__init__(source, target, **base)
        if self.label_sets is not None:
            raise UserError("data.label_sets needs one class a sample, and boxes have many: leave it out")

    def augmentation(self) -> Callable[[Any], Any] | None:
        """The augmentation of training samples."""
        return self.view(self.augment, "data.augment") if isinstance(self.augment, str) else self.augment

    def view(self, name: str, key: str = "view of boxes") -> Callable[[Any], Any]:
        """The augmentation ``weak`` or ``strong``, for an extra view of an image.

        Raises:
            UserError: for another one.
        """
        from dafw.data.box_transforms import box_transform  # imports torchvision

        found: Callable[[Any], Any] = box_transform(name, key, flip=self.flips)
        return found

    def _present(self, name: str) -> set[str] | None:
        return None
