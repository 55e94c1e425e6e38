"""Random augmentations by name. Each takes one uint8 image (3, H, W) or a sample, and draws from torch's generator."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as kernels

from dafw.data.padding import IGNORE
from dafw.errors import UserError, choose

Augmentation = Callable[[Tensor], Tensor]


def flip_crop(size: int, *, flip: bool = True) -> Augmentation:
    """A crop of 8 % to 100 % of the area, scaled to (3, size, size), and a flip: ImageNet's training augmentation.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return FlipCrop(size, flip=flip)


class FlipCrop(v2.Transform):  # type: ignore[misc]
    """A crop that is scaled to one size and perhaps mirrored; masks and boxes move with it.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
        least: smallest share of the area that a crop has.
    """

    def __init__(self, size: int, *, flip: bool = True, least: float = 0.08) -> None:
        super().__init__()
        self.size, self.flip, self.least = size, flip, least

    def __call__(self, *inputs: Any) -> Any:
        """Transforms a sample; an image alone goes a quicker way."""
        if len(inputs) == 1 and type(inputs[0]) is Tensor:
            return _flip_crop(inputs[0], size=self.size, flip=self.flip, least=self.least)
        return super().__call__(*inputs)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the crop of a sample."""
        height, width = v2.query_size(flat_inputs)
        *crop, mirrored = _crop_and_flip(height, width, least=self.least)
        return {"crop": crop, "mirrored": self.flip and mirrored}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops one part of a sample."""
        moved = kernels.resized_crop(inpt, *params["crop"], [self.size, self.size])
        return kernels.horizontal_flip(moved) if params["mirrored"] else moved


def _flip_crop(image: Tensor, *, size: int, flip: bool, least: float = 0.08) -> Tensor:
    """Scaling takes half the time where the channels of a pixel lie side by side and its rows without gaps."""
    top, left, height, width, mirrored = _crop_and_flip(*image.shape[-2:], least=least)
    window = image.permute(1, 2, 0)[None, top : top + height, left : left + width]
    window = window.flip(2) if flip and mirrored else window.contiguous()
    return functional.interpolate(window.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True)[0]


def _crop_and_flip(height: int, width: int, tries: int = 10, *, least: float = 0.08) -> tuple[int, int, int, int, bool]:
    """Top, left, height and width of a crop, and whether to mirror it; all from one draw of torch's generator.

    Its share of the area is uniform in [least, 1] and the logarithm of its aspect ratio in that of [3/4, 4/3]. If it
    does not fit into the image at the tenth try either, it is the middle, as large as a ratio in that range allows.
    """
    mirrored, down, right, *shapes = torch.rand(3 + 2 * tries).tolist()
    for share, slant in zip(shapes[::2], shapes[1::2], strict=True):
        area, ratio = height * width * (least + (1 - least) * share), (4 / 3) ** (2 * slant - 1)
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w, mirrored < 0.5
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w, mirrored < 0.5


def crop(size: int, *, flip: bool = True) -> Augmentation:
    """A crop at a random place, unscaled, to (3, size, size), and a flip; smaller images get a black border.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return v2.Compose([v2.RandomCrop(size, pad_if_needed=True), *_flip(flip)])  # type: ignore[no-any-return]


def center_crop(size: int, *, flip: bool = True) -> Augmentation:
    """The middle, unscaled, to (3, size, size), and a flip; smaller images get a black border.

    How ParetoDA and the Transfer-Learning-Library train on VisDA (read in their code).

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    return v2.Compose([v2.CenterCrop(size), *_flip(flip)])  # type: ignore[no-any-return]


def domainbed(size: int, *, flip: bool = True) -> Augmentation:
    """A crop of 70 % to 100 % of the area, scaled to (3, size, size), a flip, other colours, and at times none.

    The training augmentation of DomainBed (Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434;
    read in its code): brightness, contrast and saturation times 0.7 to 1.3, the hue turned by up to 0.3 of the
    circle, and one image in ten grey.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    crop_and_flip = FlipCrop(size, flip=flip, least=0.7)
    colours = [v2.ColorJitter(0.3, 0.3, 0.3, 0.3), v2.RandomGrayscale(p=0.1)]
    return v2.Compose([crop_and_flip, *colours])  # type: ignore[no-any-return]


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


def affine(size: int, *, flip: bool = True) -> Augmentation:
    """A flip, a turn by up to 20 degrees, a shift by up to an eighth of the size, and other colours.

    It moves masks with the image, and it can be a view of images with masks. Pixels that come from outside the image
    are black and have no label. The angle is that of AdaWAC's authors' code; the rest is ours.

    Args:
        size: height and width of the result, in pixels.
        flip: mirror every other image.
    """
    fill: Any = {tv_tensors.Mask: IGNORE, "others": 0}
    moves = v2.RandomAffine(20, translate=(0.125, 0.125), interpolation=InterpolationMode.BILINEAR, fill=fill)
    resize = v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)
    colours = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return v2.Compose([resize, *_flip(flip), moves, colours])  # type: ignore[no-any-return]


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


_MAKERS: dict[str, Callable[..., Augmentation]] = {
    "affine": affine,
    "center_crop": center_crop,
    "crop": crop,
    "domainbed": domainbed,
    "flip_crop": flip_crop,
    "strong": strong,
    "weak": weak,
}

AUGMENTATIONS = ("none", *_MAKERS)


def check_word(name: str) -> None:
    """Compares a name with :data:`AUGMENTATIONS`.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    choose("augmentation", name, AUGMENTATIONS)


def named_augmentation(name: str, size: int, **options: Any) -> Augmentation | None:
    """The augmentation called ``name``, one of :data:`AUGMENTATIONS`; ``None`` for ``none``.

    Args:
        name: the function above, or ``none``.
        size: height and width of the result, in pixels.
        options: see the function.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    check_word(name)
    return None if name == "none" else _MAKERS[name](size, **options)


def named_view(name: str, size: int, **options: Any) -> Augmentation:
    """As :func:`named_augmentation`, for a further view of an image, where ``none`` would be no view at all."""
    augmentation = named_augmentation(name, size, **options)
    if augmentation is None:
        raise UserError('a view needs an augmentation, so "none" cannot be one')
    return augmentation
