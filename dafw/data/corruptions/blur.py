"""Corruptions by blur. Each takes an image in [0, 1], (H, W, 3), and returns one."""

import numpy as np
from numpy.typing import NDArray

from dafw.data.corruptions.parts import Image, enlarged, moved, smooth


def gaussian_blur(x: Image, sigma: float, rng: np.random.Generator) -> Image:
    """A Gaussian blur of standard deviation ``sigma`` pixels."""
    return smooth(x, sigma)


def defocus_blur(x: Image, shape: tuple[float, float], rng: np.random.Generator) -> Image:
    """The mean over a disk.

    Args:
        x: the image.
        shape: radius of the disk in pixels, and the standard deviation of the blur of its border.
        rng: not used.
    """
    from scipy.ndimage import correlate

    kernel = disk(*shape)
    return np.stack([correlate(channel, kernel, mode="mirror") for channel in np.moveaxis(x, -1, 0)], -1)


def disk(radius: float, sigma: float) -> NDArray[np.float64]:
    """Weights of a disk with a soft border, (2k + 1, 2k + 1)."""
    from scipy.ndimage import correlate1d

    reach, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    places = np.arange(-reach, reach + 1)
    found = ((places[:, None] ** 2 + places**2) <= radius**2).astype(np.float64)
    found /= found.sum()
    weights = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        found = correlate1d(found, weights / weights.sum(), axis, mode="mirror")
    return found


def glass_blur(x: Image, shape: tuple[float, int, int], rng: np.random.Generator) -> Image:
    """Between two Gaussian blurs, each pixel becomes a random near one, one pixel after the other.

    The authors mean to swap two pixels. What their program does is to copy the second one over the first, since NumPy
    gives views. This is done here too, as CIFAR-10-C and ImageNet-C have it.

    Args:
        x: the image.
        shape: standard deviation of the blurs, largest distance in pixels, number of passes.
        rng: chooses the near pixels.
    """
    sigma, reach, passes = shape
    height, width = x.shape[:2]
    x = np.floor(smooth(x, sigma) * 255) / 255
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    taken = list(range(height * width))
    for _ in range(passes):
        draws = rng.integers(-reach, reach, (len(rows), len(columns), 2))
        offsets = (draws[..., 1] * width + draws[..., 0]).tolist()
        for row, line in zip(rows, offsets, strict=True):
            first = row * width
            for column, offset in zip(columns, line, strict=True):
                taken[first + column] = taken[first + column + offset]
    return smooth(x.reshape(-1, x.shape[-1])[taken].reshape(x.shape), sigma)


def motion_blur(x: Image, shape: tuple[float, float], rng: np.random.Generator) -> Image:
    """A blur along a line of a random direction between -45 and 45 degrees.

    Args:
        x: the image.
        shape: half the length of the line in pixels, and the standard deviation of its weights.
        rng: gives the direction.
    """
    return np.rint(moved(x, *shape, rng.uniform(-45, 45)) * 255) / 255


def zoom_blur(x: Image, shape: tuple[float, float], rng: np.random.Generator) -> Image:
    """The mean of the image and of enlarged ones.

    Args:
        x: the image.
        shape: the factors run from 1 to the first number, which is left out, in steps of the second one.
        rng: not used.
    """
    factors = np.arange(1, *shape)
    return (x + sum(enlarged(x, factor) for factor in factors)) / (len(factors) + 1)
