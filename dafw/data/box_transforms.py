"""Random augmentations of images with boxes. They keep an image's size and draw from torch's generator."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from dafw.data.colours import YIQ, colour_maps
from dafw.errors import choose


def weak(flip: bool) -> v2.Transform:
    """A flip of every other image, as the weak view of Unbiased Teacher, which also scales all images of a batch.

    Where flips would change the class, the image is moved by up to a twentieth of its size and scaled by 0.9 to 1.1.

    Args:
        flip: whether a mirrored object keeps its class.
    """
    if flip:
        return v2.RandomHorizontalFlip()
    return v2.RandomAffine(0, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR)


def strong(flip: bool) -> v2.Transform:
    """:func:`weak`, then other colours, a blur, and parts cut out, with the numbers of Unbiased Teacher's code.

    Liu et al., ICLR 2021, https://arxiv.org/abs/2102.09480; the numbers are recalled.

    Args:
        flip: whether a mirrored object keeps its class.
    """
    return v2.Compose([weak(flip), Colours(), Blur(), CutOut()])


_MAKERS = {"strong": strong, "weak": weak}
WORDS = tuple(_MAKERS)


def box_transform(word: str, key: str, *, flip: bool) -> v2.Transform:
    """The augmentation called ``weak`` or ``strong``.

    Args:
        word: its name.
        key: what names it, for messages.
        flip: whether it may mirror images.

    Raises:
        UserError: for another word.
    """
    return _MAKERS[choose(key, word, WORDS)](flip)


class _OfPixels(v2.Transform):  # type: ignore[misc]
    """A transform that changes the image with a probability, and leaves its boxes where they are."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Changes an image; boxes and masks stay as they are."""
        if isinstance(inpt, tv_tensors.BoundingBoxes | tv_tensors.Mask) or _uniform(0, 1) >= self.p:
            return inpt
        return tv_tensors.wrap(self.changed(inpt.as_subclass(Tensor)), like=inpt)

    def changed(self, image: Tensor) -> Tensor:
        """Another image: uint8 (3, H, W) to the same."""
        raise NotImplementedError


class Colours(_OfPixels):
    """Brightness, contrast and saturation times 0.6 to 1.4 and another hue with probability 0.8; then grey with 0.2.

    Args:
        p: probability of other colours.
        grey: probability of grey.
        strength: factors are from [1 - strength, 1 + strength].
        hue: the hue turns by up to this share of the circle.
    """

    def __init__(self, p: float = 0.8, grey: float = 0.2, strength: float = 0.4, hue: float = 0.1) -> None:
        super().__init__(1.0)
        self.jitter, self.grey, self.strength, self.hue = p, grey, strength, hue

    def changed(self, image: Tensor) -> Tensor:
        """One affine map of the colours of all pixels; an image of another number of channels than three stays."""
        drawn = torch.rand(6, dtype=torch.float64).numpy()
        if len(image) != 3:
            return image
        factors = self.strength * (2 * drawn[1:4] - 1) * (drawn[0] < self.jitter)
        turn = self.hue * (2 * drawn[4:5] - 1) * (drawn[0] < self.jitter)
        (colours,), (share,) = colour_maps(1 + factors[None], turn)
        grey = YIQ[0] @ image[:, ::4, ::4].double().mean((1, 2)).numpy()  # a sixteenth of the pixels says as much
        if drawn[5] < self.grey:
            colours = np.broadcast_to(YIQ[0] @ colours, (3, 3))
        matrix = np.concatenate([colours, np.full((3, 1), share * grey)], 1)
        pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        moved = np.array(pixels.convert("RGB", tuple(matrix.ravel().tolist())))
        return torch.from_numpy(moved).permute(2, 0, 1)


class Blur(_OfPixels):
    """A Gaussian blur.

    Args:
        p: its probability.
        least: smallest standard deviation in pixels.
        most: largest.
    """

    def __init__(self, p: float = 0.5, least: float = 0.1, most: float = 2.0) -> None:
        super().__init__(p)
        self.least, self.most = least, most

    def changed(self, image: Tensor) -> Tensor:
        """The blurred image. It goes on at its border as it ends there."""
        sigma = _uniform(self.least, self.most)
        reach = max(1, round(3 * sigma))
        weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
        weights /= 2 * weights.sum() - weights[0]
        blurred = image.contiguous().float()
        for axis in (1, 2):  # sums of shifted images: torch's convolution takes ten times as long here
            length = image.shape[axis]
            padding = (reach, reach, 0, 0) if axis == 2 else (0, 0, reach, reach)
            padded = functional.pad(blurred, padding, mode="replicate")
            blurred = weights[0] * padded.narrow(axis, reach, length)
            for away in range(1, reach + 1):
                for start in (reach - away, reach + away):
                    blurred.add_(padded.narrow(axis, start, length), alpha=float(weights[away]))
        return blurred.round_().clamp_(0, 255).to(torch.uint8)


class CutOut(_OfPixels):
    """Up to three rectangles of noise, each there with a probability of its own.

    Args:
        parts: for each its probability, the range of its share of the area, and that of its height over its width.
    """

    PARTS = (
        (0.7, (0.05, 0.2), (0.3, 3.3)),
        (0.5, (0.02, 0.2), (0.1, 6.0)),
        (0.3, (0.02, 0.2), (0.05, 8.0)),
    )

    def __init__(self, parts: tuple[tuple[float, tuple[float, float], tuple[float, float]], ...] = PARTS) -> None:
        super().__init__(1.0)
        self.parts = parts

    def changed(self, image: Tensor) -> Tensor:
        """A copy with the rectangles."""
        image = image.clone()
        height, width = image.shape[1:]
        for p, shares, ratios in self.parts:
            if _uniform(0, 1) >= p:
                continue
            area, ratio = height * width * _uniform(*shares), np.exp(_uniform(*np.log(ratios)))
            h, w = min(height, round(np.sqrt(area * ratio))), min(width, round(np.sqrt(area / ratio)))
            top, left = (int(_uniform(0, most)) for most in (height - h + 1, width - w + 1))
            image[:, top : top + h, left : left + w] = torch.randint(256, (len(image), h, w), dtype=torch.uint8)
        return image


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()
