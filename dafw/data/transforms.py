"""Random augmentations by name. Each takes one uint8 image (3, H, W) and draws from torch's generator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from dafw.errors import UserError, choose

Augmentation = Callable[[Tensor], Tensor]


def flip_crop(size: int, *, flip: bool = True) -> Augmentation:
    """A crop of 8 % to 100 % of the area, scaled to (3, size, size), and a flip: ImageNet's training augmentation.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), *_flip(flip)])  # type: ignore[no-any-return]


def crop(size: int, *, flip: bool = True) -> Augmentation:
    """A crop at a random place, unscaled, to (3, size, size), and a flip; smaller images get a black border.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return v2.Compose([v2.RandomCrop(size, pad_if_needed=True), *_flip(flip)])  # type: ignore[no-any-return]


def weak(size: int, *, flip: bool = True) -> Augmentation:
    """A shift by up to an eighth of the size, and a flip: FixMatch's weak augmentation (Sohn et al. 2020, section 2.3).

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return v2.Compose(_weak(size, flip))  # type: ignore[no-any-return]


def strong(size: int, *, flip: bool = True) -> Augmentation:
    """:func:`weak`, then two random operations of strength 10 of 30: RandAugment (Cubuk et al. 2020, n=2, m=10).

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return v2.Compose([*_weak(size, flip), v2.RandAugment(num_ops=2, magnitude=10)])  # type: ignore[no-any-return]


def _weak(size: int, flip: bool) -> list[torch.nn.Module]:
    shift = max(1, size // 8)
    return [
        v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True),
        v2.Pad(shift, padding_mode="reflect"),
        v2.RandomCrop(size),
        *_flip(flip),
    ]


def _flip(flip: bool) -> list[torch.nn.Module]:
    return [v2.RandomHorizontalFlip()] if flip else []


_MAKERS: dict[str, Callable[..., Augmentation]] = {"crop": crop, "flip_crop": flip_crop, "strong": strong, "weak": weak}

AUGMENTATIONS = ("none", *_MAKERS)


def named_augmentation(name: str, size: int, **options: Any) -> Augmentation | None:
    """The augmentation called ``name``, one of :data:`AUGMENTATIONS`; ``None`` for ``none``.

    Args:
        name: the function above, or ``none``.
        size: height and width of the result, in pixels.
        options: see the function.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    choose("augmentation", name, AUGMENTATIONS)
    return None if name == "none" else _MAKERS[name](size, **options)


def named_view(name: str, size: int, **options: Any) -> Augmentation:
    """As :func:`named_augmentation`, for a further view of an image, where ``none`` would be no view at all."""
    augmentation = named_augmentation(name, size, **options)
    if augmentation is None:
        raise UserError('a view needs an augmentation, so "none" cannot be one')
    return augmentation
