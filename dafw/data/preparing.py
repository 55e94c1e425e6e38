"""How an image file becomes the input of a network in evaluation, as objects that an exported model can carry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dafw.data.images import ImageOrPath, as_item, as_rgb, enough
from dafw.data.scaling import Fit, Size, cut_middle, fit_pixels, scaled_size
from dafw.errors import UserError, choose


@dataclass(frozen=True)
class Preparation(ABC):
    """From a file or an image of Pillow to an input: a function with a description of plain values."""

    #: Whether :meth:`fit` is made of operations on tensors, which a program can hold.
    in_program: ClassVar[bool] = False

    def __call__(self, image: ImageOrPath) -> Tensor:
        """The input of one image, uint8 (3, h, w).

        Raises:
            CorruptImage: if it cannot be decoded.
            UserError: naming the file, if it does not exist, or cannot be read.
        """
        return self.fit(self.decode(image)[None])[0]

    def decode(self, image: ImageOrPath) -> Tensor:
        """The image upright and in RGB, uint8 (3, H, W), neither scaled nor cut; errors as of a call."""
        return as_item(np.array(as_rgb(image)))

    @abstractmethod
    def fit(self, images: Tensor) -> Tensor:
        """Scales and cuts images of one size: uint8 (N, 3, H, W) to (N, 3, h, w)."""

    @property
    def is_fixed(self) -> bool:
        """Whether all inputs have one size."""
        return True

    @property
    @abstractmethod
    def in_words(self) -> str:
        """What :meth:`fit` does, for a reader."""

    def described(self) -> dict[str, Any]:
        """The kind and the arguments, as plain values."""
        return {"kind": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Fitted(Preparation):
    """Antialiased bilinear scaling of bytes by torch, then the middle or all of it.

    The size of a large JPEG is reduced while its file is decoded. So an image of Pillow that has been read may differ
    from its file by a few levels.

    Args:
        size: height and width of the input, in pixels.
        resize: pixels to which the image is scaled first.
        how: see :func:`~dafw.data.scaling.fit_pixels`.
        scaled: whether the result is then scaled to ``size``; if not, its middle is cut out.
    """

    size: int
    resize: int
    how: Fit = "crop"
    scaled: bool = False
    in_program: ClassVar[bool] = True

    def decode(self, image: ImageOrPath) -> Tensor:
        """See the base."""
        return as_item(np.array(as_rgb(image, at_least=enough(self.resize))))

    def fit(self, images: Tensor) -> Tensor:
        """See the base."""
        fitted = fit_pixels(images, self.resize, self.how)
        return fit_pixels(fitted, self.size, "squash") if self.scaled else cut_middle(fitted, self.size)

    @property
    def in_words(self) -> str:
        """See the base."""
        first = "short side" if self.how == "crop" else "both sides"
        square = f", its middle {self.resize} x {self.resize} cut out" if self.how == "crop" else ""
        last = "" if self.size == self.resize else f", then {'scaled to' if self.scaled else 'the middle'} {self.size}"
        return f"antialiased bilinear scaling of uint8 ({first} to {self.resize}{square}{last})"


@dataclass(frozen=True)
class Squashed(Preparation):
    """Both sides scaled by Pillow's antialiased bilinear interpolation, which no program can hold.

    Args:
        size: height and width of the input, in pixels.
    """

    size: int

    def fit(self, images: Tensor) -> Tensor:
        """See the base."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        found = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in images]
        scaled = [np.array(one.resize((self.size, self.size), Image.Resampling.BILINEAR)) for one in found]
        return torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2)

    @property
    def in_words(self) -> str:
        """See the base."""
        return f"Pillow's antialiased bilinear scaling, both sides to {self.size}"


@dataclass(frozen=True)
class Whole(Preparation):
    """The whole image, as it is or scaled by antialiased bilinear interpolation of bytes by torch: for masks.

    Args:
        size: pixels of the short side, or height and width; ``None`` leaves an image as it is.
    """

    size: Size | None
    in_program: ClassVar[bool] = True

    def fit(self, images: Tensor) -> Tensor:
        """See the base."""
        given = tuple(images.shape[-2:])
        sides = scaled_size(given, self.size)
        if self.size is None or (all(isinstance(side, int) for side in given) and sides == given):
            return images
        return functional.interpolate(images, sides, mode="bilinear", antialias=True)

    @property
    def is_fixed(self) -> bool:
        """See the base."""
        return isinstance(self.size, tuple)

    @property
    def in_words(self) -> str:
        """See the base."""
        if self.size is None:
            return "the whole image as it is"
        sides = f"short side to {self.size}"
        if isinstance(self.size, tuple):
            sides = f"height to {self.size[0]}, width to {self.size[1]}"
        return f"antialiased bilinear scaling of uint8 ({sides}) of the whole image"


_KINDS: dict[str, type[Preparation]] = {one.__name__: one for one in (Fitted, Squashed, Whole)}
_LARGEST = 10_000


def preparation(description: Mapping[str, Any]) -> Preparation:
    """What :meth:`Preparation.described` described.

    Raises:
        UserError: if it is of another form.
    """
    values = dict(description)
    owner = _KINDS[choose("kind of preparation", str(values.pop("kind", "")), tuple(_KINDS))]
    sizes = [values.get(name) for name in ("size", "resize") if name in owner.__dataclass_fields__]
    if owner is Whole and "size" in values:
        (given,) = sizes
        if isinstance(given, list | tuple):
            values["size"] = tuple(given)
        sizes = [] if given is None else list(given) if isinstance(given, list | tuple) and len(given) == 2 else [given]
    if not all(type(one) is int and 0 < one <= _LARGEST for one in sizes):
        raise UserError(f"an image's sizes must be whole numbers from 1 to {_LARGEST}, not {sizes}")
    if values.get("how", "crop") not in get_args(Fit) or type(values.get("scaled", False)) is not bool:
        raise UserError("a preparation has a how that is not known")
    try:
        return owner(**values)
    except TypeError as error:
        raise UserError(f"a preparation has other arguments than {', '.join(owner.__dataclass_fields__)}") from error
