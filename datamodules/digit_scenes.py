"""Scenes of digits on photographs, with their boxes, and the ways in which domains differ. Nothing is downloaded."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dafw.data.files import Arrays, cached_arrays
from dafw.data.roles import Split
from datamodules import digit_images
from datamodules.digit_images import Images, photograph_halves, resize
from datamodules.digits import SHARES, stratified

Pixels = NDArray[np.float64]

#: The sets of digits, each images of white digits on black.
DIGITS: dict[str, Callable[[], Arrays]] = {
    "mnist": digit_images.mnist,
    "optdigits": digit_images.optdigits,
    "fonts": digit_images.fonts,
}
#: The set of a domain whose name is a degradation alone.
PLAIN = "mnist"
_AIRS = ("fog", "graded")
_MARK = 20240701


class Style(NamedTuple):
    """What the name of a domain says: ``digits[+geo][+fog or +graded]``, or the degradations alone.

    Attributes:
        digits: one of :data:`DIGITS`.
        geo: whether digits are turned, sheared, and thinner or bolder.
        air: ``fog``, ``graded``, or empty.
    """

    digits: str
    geo: bool
    air: str

    @classmethod
    def of(cls, name: str) -> "Style":
        """The style that a name stands for."""
        parts = name.split("+")
        digits = parts[0] if parts[0] in DIGITS else PLAIN
        return cls(digits, "geo" in parts, next((air for air in _AIRS if air in parts), ""))


@lru_cache(maxsize=8)
def pools(name: str, wanted: str) -> dict[Split, list[Images]]:
    """Digits by split and class: each split has digits of its own, 70, 10 and 20 % of each class.

    Args:
        name: one of :data:`DIGITS`.
        wanted: the digits that are classes, as in ``014``.

    Returns:
        For each split, for each wanted digit, images (n, h, w), white on black.
    """
    found = DIGITS[name]()
    splits = stratified(found["images"], found["labels"], SHARES)
    return {
        split: [found["images"][rows[found["labels"][rows] == int(digit)]] for digit in wanted]
        for split, rows in splits.items()
    }


def draw_scene(name: str, split: Split, index: int, *, seed: int, wanted: str, size: int) -> tuple[Images, Pixels]:
    """One to three digits on a photograph; a function of its arguments alone.

    Domains of two names that mean the same show the same scenes.

    Args:
        name: the domain, see :class:`Style`.
        split: whose digits it shows. Training shows the left halves of the photographs, other splits the right ones.
        index: number of the scene in its split.
        seed: number of the collection of scenes.
        wanted: the digits that are classes, as in ``014``.
        size: height and width in pixels.

    Returns:
        The image (size, size, 3), and for each digit (k, 5) its box x1, y1, x2, y2 in pixels and its class.
    """
    style = Style.of(name)
    place = list(DIGITS).index(style.digits), int(style.geo), ("", *_AIRS).index(style.air), list(SHARES).index(split)
    rng = np.random.default_rng([_MARK, seed, *place, index])
    glyphs, severity = pools(style.digits, wanted)[split], rng.random()
    ground, bright = _crop(rng, split == "train", size), rng.random() < 0.5
    pixels = 0.05 + 0.4 * ground if bright else 0.55 + 0.45 * ground
    found: list[list[float]] = []
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(len(glyphs)))
        glyph = glyphs[label][int(rng.integers(len(glyphs[label])))]
        if style.geo:
            glyph = _bent(glyph, rng, severity)
        ink = _scaled(glyph, round(size * rng.uniform(0.25, 0.4)))
        height, width = ink.shape
        for _ in range(30):
            top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
            box = [left, top, left + width, top + height]
            if all(box[0] > x2 or x1 > box[2] or box[1] > y2 or y1 > box[3] for x1, y1, x2, y2, _ in found):
                break
        else:
            continue
        colour = rng.uniform(0.75, 1.0, 3) if bright else rng.uniform(0.0, 0.25, 3)
        window = pixels[top : top + height, left : left + width]
        window += ink[..., None] * (colour - window)
        found.append([*box, label])
    shown = _degraded(pixels, style, rng, severity)
    return (255 * np.clip(shown, 0, 1)).round().astype(np.uint8), np.asarray(found, np.float64)


def draw_scenes(name: str, split: Split, count: int, *, seed: int, wanted: str, size: int) -> Arrays:
    """The first scenes of a split: ``images`` (n, size, size, 3), ``boxes`` (b, 5), and ``counts`` (n,) of their boxes.

    They are kept on disk for each version of Pillow, since its scaling may change. See :func:`draw_scene`.
    """
    options = {"seed": seed, "wanted": wanted, "size": size}
    key = {"version": 1, "style": list(Style.of(name)), "split": split, "count": count, "pillow": PIL.__version__}

    def make() -> Arrays:
        drawn = [draw_scene(name, split, index, **options) for index in range(count)]  # type: ignore[arg-type]
        images, boxes = zip(*drawn, strict=True)
        return {
            "images": np.stack(images),
            "boxes": np.concatenate(boxes).astype(np.float32),
            "counts": np.asarray([len(one) for one in boxes]),
        }

    return cached_arrays("digit-scenes", key | options, make)


def _crop(rng: np.random.Generator, left: bool, size: int) -> Pixels:
    """A piece of a photograph, one to three times as large and scaled down: (size, size, 3) in [0, 1]."""
    pool = photograph_halves()[left]
    photograph = pool[int(rng.integers(len(pool)))]
    side = min(int(size * rng.uniform(1, 3)), *photograph.shape[:2])
    top, start = (int(rng.integers(whole - side + 1)) for whole in photograph.shape[:2])
    return np.asarray(resize(photograph[None, top : top + side, start : start + side], size)[0] / 255.0)


def _scaled(glyph: Images, side: int) -> Pixels:
    """The ink of a digit, cut out and scaled so that its longer side has so many pixels: (h, w) in [0, 1]."""
    rows, columns = (np.flatnonzero((glyph > 0.4 * glyph.max()).any(axis)) for axis in (1, 0))
    cut = glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(cut.shape)
    height, width = (max(3, round(scale * one)) for one in cut.shape)
    return np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.BILINEAR)) / 255.0


def _bent(glyph: Images, rng: np.random.Generator, severity: float) -> Images:
    """A digit turned by up to 45 degrees, sheared by up to 0.3, and one in two thinner or bolder, by the severity."""
    side = 4 * 28
    big = Image.fromarray(glyph).resize((side, side), Image.Resampling.BILINEAR)
    stroke = 2 * round(3 * severity * rng.random()) + 1
    thinner, turned, sheared = rng.random() < 0.5, rng.uniform(-1, 1) * severity, rng.uniform(-1, 1) * severity
    if stroke > 1:
        thin = big.filter(ImageFilter.MinFilter(stroke))
        big = thin if thinner and np.asarray(thin).max() > 200 else big.filter(ImageFilter.MaxFilter(stroke))
    canvas = Image.new("L", (2 * side, 2 * side))
    canvas.paste(big, (side // 2, side // 2))
    turn = digit_images.affine_about(np.deg2rad(45 * turned), 0.3 * sheared, float(side))
    moved = canvas.transform(canvas.size, Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
    return np.asarray(moved)


def _degraded(pixels: Pixels, style: Style, rng: np.random.Generator, severity: float) -> Pixels:
    """The scene I behind fog: I t + A (1 - t) + noise, where t is a smooth field and A the fog's brightness."""
    if style.air == "fog":
        low, high, noise = 0.2, 0.45, 0.08
    elif style.air == "graded":
        low, high, noise = 0.5 - 0.4 * severity, 0.7 - 0.4 * severity, 0.06
    elif style.geo:
        low, high, noise = 0.6, 0.85, 0.03
    else:
        return pixels
    size = len(pixels)
    coarse = Image.fromarray(rng.random((4, 4)).astype(np.float32))
    field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64).clip(0, 1)
    clear = (low + (high - low) * field)[..., None]
    return clear * pixels + (1 - clear) * rng.uniform(0.7, 0.95) + rng.normal(0, noise, pixels.shape)
