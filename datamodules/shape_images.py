"""Scenes of coloured shapes on photographs, and the styles of the domains that show them. Nothing is downloaded."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dafw.data.files import Arrays, cached_arrays
from datamodules.digit_images import Images, photograph_halves, resize

Pixels = NDArray[np.float64]

SIDE = 64
CLASSES = ("background", "disk", "square", "triangle")
_COLOURS = np.asarray([[0.9, 0.2, 0.2], [0.2, 0.8, 0.25], [0.25, 0.35, 0.95]])
_SPREAD = 0.13
_MARK = 20240501


class Scene(NamedTuple):
    """A scene before it gets its style.

    Args:
        pixels: (64, 64, 3) in [0, 1].
        mask: (64, 64) uint8, numbers of :data:`CLASSES`.
    """

    pixels: Pixels
    mask: Images


def scene(seed: int, index: int, *, left: bool) -> Scene:
    """One to three shapes that do not touch, filled with grey photograph times the colour of their class.

    It is a function of its arguments alone.

    Args:
        seed: number of a collection of scenes.
        index: number of the scene in it.
        left: whether ground and fillings come from the left halves of the photographs, otherwise from the right ones.
    """
    rng = np.random.default_rng([_MARK, seed, index])
    pixels, mask = _crop(rng, left), np.zeros((SIDE, SIDE), np.uint8)
    taken: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(7, 13)
        for _ in range(30):
            across, down = rng.uniform(radius, SIDE - radius, 2)
            if all(np.hypot(across - x, down - y) > radius + r + 2 for x, y, r in taken):
                break
        else:
            continue
        taken.append((across, down, radius))
        label = int(rng.integers(1, len(CLASSES)))
        inside = _shape(label, across, down, radius, rng.uniform(0, 2 * np.pi))
        colour = np.clip(_COLOURS[label - 1] + rng.normal(0, _SPREAD, 3), 0, 1)
        texture = 0.4 + 0.6 * _crop(rng, left).mean(2, keepdims=True)
        pixels = np.where(inside[..., None], texture * colour, pixels)
        mask[inside] = label
    return Scene(pixels, mask)


def _shape(label: int, across: float, down: float, radius: float, turn: float) -> NDArray[np.bool_]:
    """The pixels of a shape, (64, 64); a square or a triangle is turned by ``turn`` radians."""
    drawn = Image.new("1", (SIDE, SIDE))
    pen = ImageDraw.Draw(drawn)
    if label == 1:
        pen.ellipse([across - radius, down - radius, across + radius, down + radius], fill=1)
    else:
        corners = 4 if label == 2 else 3
        angles = turn + 2 * np.pi * np.arange(corners) / corners
        pen.polygon([(across + radius * np.cos(at), down + radius * np.sin(at)) for at in angles.tolist()], fill=1)
    return np.asarray(drawn)


def _crop(rng: np.random.Generator, left: bool) -> Pixels:
    """A piece of a photograph, one to three times as large and scaled down: (64, 64, 3) in [0, 1]."""
    pool = photograph_halves()[left]
    photograph = pool[int(rng.integers(len(pool)))]
    side = int(SIDE * rng.uniform(1, 3))
    top, start = (int(rng.integers(whole - side + 1)) for whole in photograph.shape[:2])
    return np.asarray(resize(photograph[None, top : top + side, start : start + side], SIDE)[0] / 255.0)


def day(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The scene as it is."""
    return pixels


def night(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Darker (gamma 1.6 to 2.4, times 0.6 to 0.9), blue, blurred (0.7 pixels) and noisy (0.04)."""
    dark = pixels ** rng.uniform(1.6, 2.4) * rng.uniform(0.6, 0.9)
    cast = dark * [0.7, 0.8, 1.0] + [0.0, 0.01, 0.06]
    blurred = Image.fromarray(_bytes(cast)).filter(ImageFilter.GaussianBlur(0.7))
    return np.asarray(blurred) / 255.0 + rng.normal(0, 0.04, pixels.shape)


def haze(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The channels change places, so that each class has the colour of another one, and a bright veil lies over all."""
    clear = rng.uniform(0.45, 0.7)
    return clear * pixels[..., [2, 0, 1]] + (1 - clear) * 0.85


STYLES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {"day": day, "night": night, "haze": haze}


def shifted(mask: Images, seed: int, index: int) -> Images:
    """The mask of a scene, moved by 3 to 5 pixels in some direction, (64, 64). What comes in from outside is ground."""
    rng = np.random.default_rng([_MARK, seed, index, len(STYLES)])
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(3, 5)
    down, across = round(length * np.sin(angle)), round(length * np.cos(angle))
    padded = np.pad(mask, 5)
    return padded[5 - down : 5 - down + SIDE, 5 - across : 5 - across + SIDE].copy()


def render(style: str, seed: int, index: int, *, left: bool) -> tuple[Images, Images]:
    """A scene in a style: image uint8 (64, 64, 3), mask uint8 (64, 64). The arguments are those of :func:`scene`.

    The same seed and index in two styles show the same scene, pixel by pixel.
    """
    shown = scene(seed, index, left=left)
    rng = np.random.default_rng([_MARK, seed, index, list(STYLES).index(style)])
    return _bytes(STYLES[style](shown.pixels, rng)), shown.mask


def scenes(style: str, seed: int, count: int, *, left: bool) -> Arrays:
    """The first scenes of a collection: ``images`` uint8 (count, 64, 64, 3), ``masks`` uint8 (count, 64, 64).

    They are kept on disk for each version of Pillow, since its drawing may change.
    """
    key = {"version": 1, "style": style, "seed": seed, "count": count, "left": left, "pillow": PIL.__version__}

    def make() -> Arrays:
        images, masks = zip(*(render(style, seed, index, left=left) for index in range(count)), strict=True)
        return {"images": np.stack(images), "masks": np.stack(masks)}

    return cached_arrays("shapes", key, make)


def _bytes(pixels: Pixels) -> Images:
    return (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8)
