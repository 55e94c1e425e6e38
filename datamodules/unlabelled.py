"""Images without labels, as a target for a model that is trained already."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dafw.data.domain import Domain
from dafw.data.preparing import Fitted, Squashed, preparation
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.files import user_path
from datamodules.base import DomainDataModule


class PreparedImages(Sequence[Tensor]):
    """Images decoded from their files each time, as evaluation prepares them; item: uint8 (3, size, size).

    Args:
        paths: image files.
        how: prepares one.
    """

    def __init__(self, paths: Sequence[str], how: Fitted | Squashed) -> None:
        self.paths, self.how = paths, how

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.how(self.paths[index])


class UnlabelledImages(DomainDataModule):
    """Files of images without labels, which `dafw adapt` makes the target of a trained model.

    All of them are the target's training, validation and test split. There is no source.

    Args:
        images: the files.
        classes: names of the classes of the model.
        preparation: how an image becomes an input, see :mod:`dafw.data.preparing`.
        source: what stands for the source of the model.
        target: the name of the images.
        base: see :class:`~datamodules.base.DomainDataModule`.

    Raises:
        UserError: without an image or a class, or for a preparation of another form.
    """

    domain_names = ("model", "images")
    flips: ClassVar[bool] = False

    def __init__(
        self,
        images: list[str],
        classes: list[str],
        preparation: dict[str, Any],
        *,
        source: str | list[str] = "model",
        target: str | list[str] = "images",
        **base: Any,
    ) -> None:
        super().__init__(source, target, **base)
        if not images or not classes:
            raise UserError("data.images and data.classes must name at least one")
        self.paths = [str(user_path(one)) for one in images]
        self.class_names = tuple(classes)
        self.how = _preparation(preparation)
        self.size = self.how.size

    def load(self, name: str, split: Split) -> Domain:
        """The images, whatever the split.

        Raises:
            UserError: for the source, of which nothing is there.
        """
        if name != "images":
            raise UserError("there are no images of a source: take a source-free or a test-time method")
        return Domain(name, PreparedImages(self.paths, self.how), None, [Path(one).as_posix() for one in self.paths])

    @property
    def sources(self) -> list[str]:
        """There are none."""
        return []

    def view(self, name: str) -> Any:
        """A named augmentation without flips, since nobody says whether a mirrored image keeps its class."""
        from dafw.data.transforms import named_view

        return named_view(name, self.size, flip=False)

    def evaluation_transform(self) -> Fitted | Squashed:
        """See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`."""
        return self.how


def _preparation(description: dict[str, Any]) -> Fitted | Squashed:
    found = preparation(description)
    if not isinstance(found, Fitted | Squashed):
        raise UserError("data.preparation is for masks, and UnlabelledImages are for classifiers")
    return found
