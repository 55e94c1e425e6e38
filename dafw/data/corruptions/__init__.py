"""The common corruptions of images: 15 of the benchmarks and four held out, at five severities."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafw.data.corruptions import blur, digital, noise, weather
from dafw.data.corruptions.severities import COMMON, CONSTANTS, HELD_OUT, LARGEST_SMALL, SEVERITIES, Scale
from dafw.errors import UserError, choose

__all__ = ["COMMON", "HELD_OUT", "KINDS", "SEVERITIES", "Scale", "corrupted", "parse_domain", "usual_scale"]

KINDS = (*COMMON, *HELD_OUT)
"""The names of all corruptions."""
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    kind: getattr(next(one for one in (noise, blur, weather, digital) if hasattr(one, kind)), kind) for kind in KINDS
}


def corrupted(
    image: NDArray[np.uint8], kind: str, severity: int, *, scale: Scale, seed: int, name: str
) -> NDArray[np.uint8]:
    """A corrupted image, a function of the arguments alone.

    It is computed in float64 and cut to whole numbers, as the authors do.

    Args:
        image: (H, W, 3).
        kind: one of :data:`KINDS`.
        severity: 1 to 5.
        scale: whose constants the severity means.
        seed: gives the random numbers, together with the kind, the severity and ``name``.
        name: of the image. Other images get other random numbers.
    """
    key = blake2b(f"{seed} {kind} {severity} {name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
    rng = np.random.default_rng(np.frombuffer(key, "<u4").tolist())
    found = _FUNCTIONS[kind](np.ascontiguousarray(image) / 255, CONSTANTS[scale][kind][severity - 1], rng)
    whole: NDArray[np.uint8] = (np.clip(found, 0, 1) * 255 + 1e-9).astype(np.uint8)
    return whole


def usual_scale(size: int) -> Scale:
    """CIFAR's severities for images of at most 64 pixels, and ImageNet's for larger ones."""
    return "cifar" if size <= LARGEST_SMALL else "imagenet"


def parse_domain(name: str) -> tuple[str, int]:
    """The corruption and the severity that the name of a domain says, as in ``fog_3``.

    Raises:
        UserError: for an unknown corruption, with the nearest name, or a severity that is not 1 to 5.
    """
    kind, _, severity = name.rpartition("_")
    if kind in KINDS and severity not in map(str, SEVERITIES):
        raise UserError(f"{kind} has the severities 1 to 5, and {name} (data.target) asks for {severity}")
    if kind not in KINDS:
        choose("corruption", kind if severity.isdigit() else name, KINDS)
    if not severity.isdigit():
        raise UserError(f"{name} (data.target) lacks a severity: say {name}_1 to {name}_5")
    return kind, int(severity)
