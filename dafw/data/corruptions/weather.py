"""Corruptions by weather. Each takes an image in [0, 1], (H, W, 3), and returns one."""

import numpy as np
from numpy.typing import NDArray

from dafw.data.corruptions.edges import edges, equalised
from dafw.data.corruptions.parts import Image, clouds, enlarged, luminance, moved, smooth


def fog(x: Image, shape: tuple[float, float], rng: np.random.Generator) -> Image:
    """Adds clouds, and scales the image to its former brightness.

    Args:
        x: the image.
        shape: strength of the clouds, and how fast their details fade.
        rng: gives the clouds.
    """
    height, width = x.shape[:2]
    brightest, strength = x.max(), shape[0]
    layer = clouds(max(height, width), shape[1], rng)[:height, :width, None]
    return np.asarray((x + strength * layer) * brightest / (brightest + strength))


def frost(x: Image, shape: tuple[float, float], rng: np.random.Generator) -> Image:
    """The image behind a window with ice: a weighted sum of the image and of a picture of ice.

    The authors cut the picture out of five photographs, which are not part of this project. Here it is generated, so
    numbers differ from theirs: veins of ice are the crests of random landscapes. Their mean colour, their contrast and
    the range of their brightness are those of the photographs.

    Args:
        x: the image.
        shape: weight of the image and weight of the ice.
        rng: gives the ice.
    """
    height, width = x.shape[:2]
    heights = clouds(2 * max(height, width), 2.2, rng)
    veins = 1 - np.abs(2 * heights - 1)
    fine = clouds(2 * max(height, width), 1.5, rng)
    ice = (veins**3 * 0.7 + fine * 0.3)[:height, :width]
    ice = (ice - ice.mean()) / max(float(ice.std()), 1e-6)
    picture = ice[..., None] * ICE_SPREAD + ICE_MEAN + rng.uniform(-ICE_RANGE, ICE_RANGE)
    return np.asarray(shape[0] * x + shape[1] * np.clip(picture, 0, 1))


ICE_MEAN = np.array([0.57, 0.66, 0.70])
"""Mean red, green and blue of the ice."""
ICE_SPREAD = 0.09
"""Standard deviation of its brightness within a picture."""
ICE_RANGE = 0.18
"""Largest difference between the mean brightness of a picture and that of all."""


def snow(x: Image, shape: tuple[float, ...], rng: np.random.Generator) -> Image:
    """Falling flakes over an image that became paler.

    Args:
        x: the image.
        shape: mean and standard deviation of the flakes' noise, its enlargement, the brightness below which there is no
            flake, half the length and the standard deviation of their motion, and the weight of the image itself.
        rng: gives the flakes and their direction.
    """
    mean, spread, factor, least, radius, sigma, weight = shape
    flakes = enlarged(rng.normal(mean, spread, x.shape[:2]), factor)
    flakes = np.floor(np.clip(np.where(flakes < least, 0, flakes), 0, 1) * 255)
    flakes = np.rint(moved(flakes, radius, sigma, rng.uniform(-135, -45)))[..., None] / 255
    pale = np.maximum(x, luminance(x) * 1.5 + 0.5)
    layer = flakes + (np.rot90(flakes, 2) if x.shape[0] == x.shape[1] else flakes[::-1, ::-1])
    return weight * x + (1 - weight) * pale + layer


WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255


def spatter(x: Image, shape: tuple[float, float, float, float, float, str], rng: np.random.Generator) -> Image:
    """Drops of water or mud on the lens.

    Args:
        x: the image.
        shape: mean and standard deviation of the noise, the standard deviation of its smoothing, the value below which
            there is no drop, the strength of water or the smoothing of mud, and ``water`` or ``mud``.
        rng: gives the drops.
    """
    mean, spread, sigma, least, strength, what = shape
    liquid = smooth(rng.normal(mean, spread, x.shape[:2]), sigma)
    liquid = np.where(liquid < least, 0, liquid)
    if what == "mud":
        drops = smooth((liquid > least).astype(np.float64), strength)
        drops = np.where(drops < 0.8, 0, drops)[..., None]
        return x * (1 - drops) + MUD * drops
    drops = _water(np.clip(np.floor(liquid * 255), 0, 255))
    top = drops.max()
    return x if top <= 0 else x + (drops / top * strength)[..., None] * WATER


def _water(liquid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The brightness of drops, (H, W), from their thickness in [0, 255]: brighter away from the upper left edges."""
    from scipy.ndimage import correlate, distance_transform_edt, uniform_filter

    found = edges(liquid, 50, 150)
    distance = distance_transform_edt(~found) if found.any() else np.full(liquid.shape, 20.0)
    distance = np.floor(uniform_filter(np.minimum(distance, 20), 3, mode="mirror"))
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    raised = np.clip(correlate(equalised(distance), relief, mode="mirror"), 0, 255)
    return np.asarray(liquid * np.rint(uniform_filter(raised, 3, mode="mirror")))
