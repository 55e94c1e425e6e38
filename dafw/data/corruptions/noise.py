"""Corruptions by noise. Each takes an image in [0, 1], (H, W, 3), and returns one."""

import numpy as np

from dafw.data.corruptions.parts import Image


def gaussian_noise(x: Image, scale: float, rng: np.random.Generator) -> Image:
    """Adds a normal number of standard deviation ``scale`` to each value."""
    return x + rng.normal(size=x.shape, scale=scale)


def shot_noise(x: Image, photons: float, rng: np.random.Generator) -> Image:
    """Counts photons: a Poisson number with the mean ``x * photons``, divided by ``photons``."""
    return rng.poisson(x * photons) / float(photons)


def impulse_noise(x: Image, share: float, rng: np.random.Generator) -> Image:
    """Replaces a share of all values by 0 or by 1, which are equally probable."""
    hit, salt = rng.random(x.shape) <= share, rng.random(x.shape) <= 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def speckle_noise(x: Image, scale: float, rng: np.random.Generator) -> Image:
    """Adds to each value itself times a normal number of standard deviation ``scale``."""
    return x + x * rng.normal(size=x.shape, scale=scale)
