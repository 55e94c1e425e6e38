"""The augmentation of training samples: a word, whose size follows from the images, or a function."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from dafw.data.domain import Domain
from dafw.errors import UserError

Augment = Callable[[Any], Any]
Word = Literal["none", "affine", "center_crop", "crop", "domainbed", "flip_crop", "strong", "weak"]
"""The words of :mod:`dafw.data.transforms`. In a union they stand first: the parser takes the first that fits."""


def known_augment(given: Word | Augment | None) -> Word | Augment | None:
    """A function or a word as it is given, and ``None`` for the word ``none``.

    Raises:
        UserError: for an unknown word, with the nearest one.
    """
    if isinstance(given, str):
        from dafw.data.transforms import check_word  # imports torchvision

        check_word(given)
    return None if given == "none" else given


def made_augment(given: Word | Augment | None, domain: Domain, *, flip: bool = True) -> Augment | None:
    """The augmentation that a word stands for, for images of the size that a domain has; a function stays as it is.

    Args:
        given: see :func:`known_augment`.
        domain: its first sample shows the size.
        flip: whether a word may mirror images.

    Raises:
        UserError: for a word, if the sample is no square image: a word makes square images.
    """
    if not isinstance(given, str):
        return given
    from dafw.data.transforms import named_augmentation

    first = domain.inputs[0]
    if not isinstance(first, Tensor) or first.ndim != 3 or first.shape[1] != first.shape[2]:
        what = "x".join(map(str, first.shape)) if isinstance(first, Tensor) else type(first).__name__
        raise UserError(
            f'data.augment "{given}" is for square images, and a sample of {domain.name} is {what}: give a transform '
            "of torchvision.transforms.v2"
        )
    return named_augmentation(given, int(first.shape[-1]), flip=flip)
