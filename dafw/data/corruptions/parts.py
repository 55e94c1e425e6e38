"""Operations that several corruptions share. They need NumPy and SciPy alone and give the same bits in any process."""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]
Plane = NDArray[np.float64]


def smooth(x: Image, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Image:
    """A Gaussian blur of each channel.

    Args:
        x: (H, W) or (H, W, C).
        sigma: standard deviation in pixels.
        mode: what lies outside of the image, in SciPy's words.
        truncate: standard deviations at which the kernel ends.
    """
    from scipy.ndimage import gaussian_filter

    found: Image = gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], mode=mode, truncate=truncate)
    return found


def enlarged(x: Image, factor: float) -> Image:
    """The middle of an image at ``factor`` times its size, as large as the image, with linear interpolation."""
    sides = x.shape[:2]
    for axis, side in enumerate(sides):
        inner = int(np.ceil(side / factor))
        start = (side - inner) // 2
        outer = round(inner * factor)
        x = _stretched(x, axis, start, inner, outer)
        trim = (outer - side) // 2
        x = x.take(range(trim, trim + side), axis)
    return np.asarray(x)


def _stretched(x: Image, axis: int, start: int, inner: int, outer: int) -> Image:
    """``inner`` rows of an axis from ``start`` on as ``outer`` rows; the first and the last stay where they are."""
    places = np.arange(outer) * ((inner - 1) / (outer - 1)) if outer > 1 else np.zeros(1)
    low = np.minimum(places.astype(np.int64), max(inner - 2, 0))
    share = (places - low).reshape((-1,) + (1,) * (x.ndim - 1 - axis))
    high = np.minimum(low + 1, inner - 1)
    return np.asarray(x.take(start + low, axis) * (1 - share) + x.take(start + high, axis) * share)


def moved(x: Image, radius: float, sigma: float, angle: float) -> Image:
    """A blur along a line that begins at each pixel, as ImageMagick's motion blur has it.

    Args:
        x: (H, W) or (H, W, C). Beyond its border lies the border.
        radius: the line has ``2 * radius + 1`` pixels.
        sigma: the weight of the pixel i is a normal density of this standard deviation at i.
        angle: direction in degrees; 0 is to the right, 90 is down.
    """
    width = 2 * int(np.ceil(radius)) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    found = np.zeros(x.shape)
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    for step, weight in enumerate(weights):
        row = np.clip(rows + int(np.ceil(step * down - 0.5)), 0, len(rows) - 1)
        column = np.clip(columns + int(np.ceil(step * right - 0.5)), 0, len(columns) - 1)
        found += weight * x[row[:, None], column]
    return found


def clouds(side: int, decay: float, rng: np.random.Generator) -> Plane:
    """A random landscape of heights in [0, 1], (n, n), made by the diamond-square algorithm, periodic at its border.

    Args:
        side: n is the next power of two.
        decay: factor by which the randomness falls from one scale to the next finer one.
        rng: gives the random numbers.
    """
    n = 1 << max(side - 1, 1).bit_length()
    heights = np.zeros((n, n))
    step, wibble = n, 100.0

    def mean(total: Plane) -> Plane:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        total = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = mean(total + np.roll(total, -1, 1))
        middles = heights[half::step, half::step]
        corners = heights[::step, ::step]
        heights[::step, half::step] = mean(middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = mean(middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())


def luminance(x: Image) -> Image:
    """The grey value of each pixel, (H, W, 1)."""
    grey: Image = x @ np.array([0.299, 0.587, 0.114])
    return grey[..., None]
