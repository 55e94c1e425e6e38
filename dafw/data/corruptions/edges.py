"""Edges by Canny's method and equalised histograms, as OpenCV has them."""

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]


def edges(x: Plane, low: float, high: float) -> NDArray[np.bool_]:
    """Edges of a plane of grey values, (H, W): crests of the gradient above ``low`` that touch one above ``high``.

    Canny, A Computational Approach to Edge Detection, PAMI 1986. The gradient is Sobel's; its size is the sum of its
    absolute parts.
    """
    from scipy.ndimage import label, sobel

    right, down = sobel(x, 1, mode="nearest"), sobel(x, 0, mode="nearest")
    size = np.abs(right) + np.abs(down)
    padded = np.pad(size, 1)

    def beside(rows: int, columns: int) -> Plane:
        return padded[1 + rows : 1 + rows + x.shape[0], 1 + columns : 1 + columns + x.shape[1]]

    slope = np.abs(down), np.abs(right)
    flat, steep = slope[0] < slope[1] * np.tan(np.pi / 8), slope[0] > slope[1] * np.tan(3 * np.pi / 8)
    falls = right * down < 0
    crest = np.select(
        [flat, steep, falls],
        [
            (size > beside(0, -1)) & (size >= beside(0, 1)),
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            (size > beside(-1, 1)) & (size > beside(1, -1)),
        ],
        (size > beside(-1, -1)) & (size > beside(1, 1)),
    )
    weak = crest & (size > low)
    pieces, _ = label(weak, np.ones((3, 3)))
    strong = np.unique(pieces[weak & (size > high)])
    return np.isin(pieces, strong[strong > 0])


def equalised(x: Plane) -> Plane:
    """Whole numbers in [0, 255], spread so that each is about as frequent as the others."""
    counts = np.bincount(x.astype(np.int64).ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    rest = x.size - counts[first]
    if not rest:
        return x
    sums = np.cumsum(counts) - counts[first]
    return np.asarray(np.rint(np.maximum(sums, 0) * (255 / rest))[x.astype(np.int64)])
