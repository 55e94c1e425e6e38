"""Rare-class sampling: how often each class of a source's masks is drawn, and from which images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.data.files import cached_arrays
from dafw.data.padding import IGNORE
from dafw.data.sampler import Stream
from dafw.data.setting import RareClasses
from dafw.errors import UserError

#: Number of the way pixels are counted: another way, another file.
_COUNTING = 1


def class_pixels(masks: Sequence[Any] | NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """The number of pixels of each class in each of n masks (h, w), (n, K); pixels without a label do not count."""
    counts = [np.bincount(np.asarray(mask).ravel(), minlength=IGNORE + 1)[:num_classes] for mask in masks]
    return np.array(counts, dtype=np.int64).reshape(len(counts), num_classes)


def rare_class_shares(pixels: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """The probability of each class, softmax((1 - f) / T): pixel counts (K,) -> (K,).

    Hoyer et al., DAFormer, CVPR 2022, https://arxiv.org/abs/2111.14887, equations 10 and 11.

    Args:
        pixels: f is each number over their sum.
        temperature: T.
    """
    scores = -np.asarray(pixels, np.float64) / max(1, np.sum(pixels)) / temperature
    shares = np.exp(scores - scores.max())
    return np.asarray(shares / shares.sum(), np.float64)


def rare_class_stream(domain: Domain, count: int, num_classes: int, rare: RareClasses, key: Any = None) -> Stream:
    """A labelled domain's part of every batch, drawn by the classes of its pixels.

    Args:
        domain: its labels are masks. All are read, once if there is a key.
        count: samples in a global batch.
        num_classes: K.
        rare: how.
        key: plain values that change with the masks. Their counts are kept in a file under it, see
            :func:`~dafw.data.files.cached_arrays`; ``None``: they are counted each time.

    Raises:
        UserError: if no pixel has a label.
    """
    assert domain.labels is not None
    masks = domain.labels
    if key is None:
        pixels = class_pixels(masks, num_classes)
    else:
        made_of = {"version": _COUNTING, "classes": num_classes, "masks": key}
        pixels = cached_arrays("class-pixels", made_of, lambda: {"pixels": class_pixels(masks, num_classes)})["pixels"]
    if not pixels.any():
        raise UserError(f"no pixel of {domain.name} has a label, so that nothing can be learnt from it")
    shares, rows, kept = rare_class_shares(pixels.sum(0), rare.temperature), [], []
    for label, own in enumerate(pixels.T):
        if own.any():
            enough = np.flatnonzero(own >= max(1, rare.least_pixels))
            rows.append(enough if len(enough) else np.flatnonzero(own))
            kept.append(label)
    return Stream(domain.name, len(domain), count, rows, shares[kept] / shares[kept].sum())
