"""Changes of brightness, contrast, saturation and hue as affine maps of the colours of a pixel."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Luma and two axes of hue, as rows: the NTSC's YIQ.
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def colour_maps(factors: NDArray[Any], turns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The maps of n images. Brightness, contrast, saturation and hue follow in this order.

    The hue turns around the grey axis of the YIQ colours.

    Args:
        factors: (n, 3), of brightness, contrast and saturation.
        turns: (n,), of the hue, in full turns.

    Returns:
        The linear maps of a pixel's colours, (n, 3, 3); and for each image the share of its mean grey that is added,
        (n,).
    """
    brightness, contrast, saturation = factors.T
    turn = 2 * np.pi * turns
    rotation = np.zeros((len(factors), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(turn)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(turn), np.sin(turn)
    rotation = np.linalg.inv(YIQ) @ rotation @ YIQ
    share = saturation[:, None, None]
    colours = rotation @ (share * np.eye(3) + (1 - share) * YIQ[:1]) * (contrast * brightness)[:, None, None]
    return colours, (1 - contrast) * brightness
