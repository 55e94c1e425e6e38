"""Strong views of images on their device: colours that change and a blur, each image with numbers of its own."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.colours import YIQ, colour_maps
from dafw.nn.draws import on_device

#: Pixels on each side that a blur reaches: more than three times the largest sigma.
_REACH = 4


class StrongViews(NamedTuple):
    """How each of n images changes, on the host.

    Attributes:
        colours: (n, 3, 3), the linear map of a pixel's colours; the identity if they stay.
        grey: (n,), the share of the image's mean grey that is added to them.
        kernel: (n, 9), the weights of a blur in each direction; all on the middle if there is none.
    """

    colours: NDArray[Any]
    grey: NDArray[Any]
    kernel: NDArray[Any]


def strong_views(drawn: NDArray[Any], *, strength: float, jitter: float, blur: float) -> StrongViews:
    """How some images change; see :func:`~dafw.data.colours.colour_maps`.

    Args:
        drawn: random numbers (n, 7) in [0, 1).
        strength: s: factors are from [1 - s, 1 + s], turns of the hue from [-s, s] of a full turn.
        jitter: probability that the colours of an image change.
        blur: probability that an image is blurred, with a sigma from 0.15 to 1.15 pixels.
    """
    changed, factors = drawn[:, 0] < jitter, strength * (2 * drawn[:, 1:5] - 1) * (drawn[:, :1] < jitter)
    colours, grey = colour_maps(1 + factors[:, :3].clip(-1), factors[:, 3])
    colours[~changed] = np.eye(3)
    sigma = np.where(drawn[:, 5] < blur, 0.15 + drawn[:, 6], 0.01)
    kernel = np.exp(-0.5 * (np.arange(-_REACH, _REACH + 1) / sigma[:, None]) ** 2)
    return StrongViews(colours, grey, kernel / kernel.sum(1, keepdims=True))


def strong_view(x: Tensor, views: StrongViews, inside: Tensor | None = None) -> Tensor:
    """Images with other colours, then blurred: (n, C, H, W) in [0, 1] -> the same, cut off at 0 and 1.

    Images of another number of channels than three are blurred alone. The mean grey is that of the pixels within the
    image, and the blur weighs these alone: neither the border nor the padding darkens the image.

    Args:
        x: images.
        views: how each of them changes.
        inside: (n, H, W) bool, which pixels belong to the images and not to their padding; ``None``: all do.
    """
    packed = np.concatenate([views.colours.reshape(-1, 9), views.grey[:, None], views.kernel], 1)
    colours, share, kernel = torch.split(on_device(packed, x), [9, 1, 2 * _REACH + 1], 1)
    if x.shape[1] == 3:
        red, green, blue = _means(x, inside).unbind(1)
        mean = YIQ[0, 0] * red + YIQ[0, 1] * green + YIQ[0, 2] * blue
        offset = (share[:, 0] * mean)[:, None, None].expand(-1, 3, 1)
        x = torch.baddbmm(offset, colours.view(-1, 3, 3), x.flatten(2)).view(x.shape).clamp_(0, 1)
    return x if (views.kernel[:, _REACH] == 1).all() else _blurred(x, kernel, inside)


def _means(x: Tensor, inside: Tensor | None) -> Tensor:
    """The mean (n, C) of the pixels within each image."""
    if inside is None:
        return x.mean((2, 3))
    return x.mul(inside[:, None]).sum((2, 3)) / inside.sum((1, 2)).clamp_min(1)[:, None]


def _blurred(x: Tensor, kernel: Tensor, inside: Tensor | None) -> Tensor:
    count, channels, height, width = x.shape
    own = x.new_ones(count, 1, height, width) if inside is None else inside[:, None].to(x.dtype)
    planes = torch.cat([x * own, own], 1).view(1, -1, height, width)
    weights = kernel.repeat_interleave(channels + 1, 0)[:, None]
    planes = F.conv2d(planes, weights[:, :, :, None], padding=(_REACH, 0), groups=len(weights))
    planes = F.conv2d(planes, weights[:, :, None], padding=(0, _REACH), groups=len(weights))
    planes = planes.view(count, channels + 1, height, width)
    return planes[:, :channels] / planes[:, channels:].clamp_min(1e-6)
