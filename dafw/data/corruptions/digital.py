"""Corruptions by processing. Each takes an image in [0, 1], (H, W, 3), and returns one."""

import io

import numpy as np
from PIL import Image as Pillow

from dafw.data.corruptions.parts import Image, smooth


def contrast(x: Image, factor: float, rng: np.random.Generator) -> Image:
    """Multiplies the distance from the mean of each channel."""
    mean = x.mean((0, 1), keepdims=True)
    return np.asarray((x - mean) * factor + mean)


def brightness(x: Image, more: float, rng: np.random.Generator) -> Image:
    """Adds to the value of HSV."""
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hue = rgb_to_hsv(x)
    hue[..., 2] = np.clip(hue[..., 2] + more, 0, 1)
    return np.asarray(hsv_to_rgb(hue))


def saturate(x: Image, change: tuple[float, float], rng: np.random.Generator) -> Image:
    """Multiplies the saturation of HSV by the first number, and adds the second one."""
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hue = rgb_to_hsv(x)
    hue[..., 1] = np.clip(hue[..., 1] * change[0] + change[1], 0, 1)
    return np.asarray(hsv_to_rgb(hue))


def jpeg_compression(x: Image, quality: int, rng: np.random.Generator) -> Image:
    """Writes a JPEG file of this quality, and reads it."""
    file = io.BytesIO()
    _pillow(x).save(file, "JPEG", quality=quality)
    with Pillow.open(file) as image:
        return np.asarray(image) / 255


def pixelate(x: Image, factor: float, rng: np.random.Generator) -> Image:
    """Makes the image smaller and then as large as before, both by means over boxes."""
    height, width = x.shape[:2]
    small = _pillow(x).resize((int(width * factor), int(height * factor)), Pillow.Resampling.BOX)
    return np.asarray(small.resize((width, height), Pillow.Resampling.BOX)) / 255


def _pillow(x: Image) -> Pillow.Image:
    return Pillow.fromarray(np.rint(x * 255).astype(np.uint8))


def elastic_transform(x: Image, shape: tuple[float, float, float], rng: np.random.Generator) -> Image:
    """A random affine map, then a smooth random field moves every pixel. Beyond the border the image is mirrored.

    Args:
        x: the image.
        shape: strength of the field, standard deviation of its smoothing, and largest shift of each of the three points
            that give the affine map, all as shares of the image's height.
        rng: gives the map and the field.
    """
    from scipy.ndimage import map_coordinates

    height, width = x.shape[:2]
    strength, sigma, shift = (height * share for share in shape)
    middle, reach = np.array([height, width]) // 2, min(height, width) // 3
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    others = corners + rng.uniform(-shift, shift, (3, 2))
    ones = np.ones((3, 1))
    back = np.linalg.solve(np.hstack([others, ones]), corners)  # (3, 2): from a point of the result to the image
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    points = np.stack([across, down, np.ones_like(down)], -1) @ back
    places = [points[..., 1], points[..., 0]]
    x = np.stack([map_coordinates(channel, places, order=1, mode="mirror") for channel in np.moveaxis(x, -1, 0)], -1)
    right, lower = (
        smooth(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) * strength for _ in range(2)
    )
    places = [down + lower, across + right]
    return np.stack(
        [map_coordinates(channel, places, order=1, mode="reflect") for channel in np.moveaxis(x, -1, 0)], -1
    )
