"""The random views of images that CoTTA, RMT, RoTTA and ROID learn from, made on the images' device."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.colours import colour_maps
from dafw.data.geometry import origins
from dafw.nn.distributed import world_size
from dafw.nn.draws import draw_rows, on_device
from dafw.nn.stochastic_restore import generator
from dafw.nn.strong_views import StrongViews, strong_view
from dafw.ranges import Checked, ClosedUnitInterval, NonNegativeFloat

#: Random numbers that one image takes, beside its noise.
NUMBERS = 11


@dataclass(frozen=True)
class TestTimeViews(Checked):
    """How much a view may differ from its image. The defaults are those of CoTTA's authors.

    Their transform draws once for a batch, changes colours in a random order, and cuts off values after each change.
    Here each image has numbers of its own, the order is the one below, and values are cut off before ``gamma`` and at
    the end.

    Args:
        brightness: the factor is from [1 - b, 1 + b].
        contrast: likewise.
        saturation: likewise.
        hue: largest turn of the hue, as a share of a full turn.
        gamma: the exponent is from [1 - g, 1 + g].
        degrees: largest rotation.
        shift: largest shift in each direction, as a share of the side.
        zoom: the scale is from [1 - z, 1 + z].
        blur: largest sigma of the blur, in pixels.
        flip: probability that the image is mirrored.
        noise: standard deviation of the noise of each value.
        border: what lies outside the image: its ``edge`` continued, or the image mirrored (``reflect``).
    """

    __test__ = False  # its name is no test's

    config_key: ClassVar[str] = "model.augment"
    brightness: ClosedUnitInterval = 0.4
    contrast: ClosedUnitInterval = 0.3
    saturation: ClosedUnitInterval = 0.5
    hue: ClosedUnitInterval = 0.06
    gamma: ClosedUnitInterval = 0.3
    degrees: NonNegativeFloat = 15.0
    shift: ClosedUnitInterval = 0.125
    zoom: ClosedUnitInterval = 0.1
    blur: NonNegativeFloat = 0.5
    flip: ClosedUnitInterval = 0.5
    noise: NonNegativeFloat = 0.005
    border: Literal["edge", "reflect"] = "edge"

    def __call__(self, x: Tensor, seed: int, step: int, name: str, *, sharded: bool = True) -> Tensor:
        """Views of images, a function of the images, the seed, the step, the name and the row in the batch.

        Args:
            x: (n, C, H, W) in floating point, in [0, 1].
            seed: of the run.
            step: number of the batch.
            name: of the view; another name gives another view.
            sharded: these are this rank's rows of a batch; else every rank has the same rows.

        Returns:
            (n, C, H, W) in [0, 1].
        """
        ranks = world_size() if sharded else 1
        if sharded:
            drawn = draw_rows(seed, step, name, len(x), NUMBERS)
        else:
            drawn = np.random.default_rng([seed % 2**32, step, *name.encode()]).random((len(x), NUMBERS))
        seen = self._moved(self._coloured(x, drawn[:, :5]), drawn[:, 5:10])
        seen = _blurred(seen, self.blur * drawn[:, 10])
        if self.noise:
            drawing = generator(x.device, seed, step, name)
            shape = (len(x) * ranks, *x.shape[1:])
            noise = torch.randn(shape, generator=drawing, device=x.device, dtype=torch.float32)
            seen = seen + self.noise * (noise if ranks == 1 else noise[dist.get_rank() :: ranks]).to(seen)
        return seen.clamp(0, 1)

    def _coloured(self, x: Tensor, drawn: NDArray[Any]) -> Tensor:
        """Brightness, contrast, saturation and hue of images of three channels, then gamma of all."""
        signed = 2 * drawn - 1
        factors = 1 + signed[:, :3] * [self.brightness, self.contrast, self.saturation]
        colours, grey = colour_maps(factors, self.hue * signed[:, 3])
        kernel = np.zeros((len(x), 9))
        kernel[:, 4] = 1
        seen = strong_view(x, StrongViews(colours, grey, kernel)).clamp(1e-8, 1)
        return seen ** on_device(1 + self.gamma * signed[:, 4], x)[:, None, None, None]

    def _moved(self, x: Tensor, drawn: NDArray[Any]) -> Tensor:
        """Images turned, scaled and shifted around their centre, then mirrored."""
        height, width = x.shape[2:]
        signed = 2 * drawn - 1
        angle, zoom = np.deg2rad(self.degrees * signed[:, 0]), 1 + self.zoom * signed[:, 1]
        mirrored = np.where(drawn[:, 4] < self.flip, -1.0, 1.0)
        linear = zoom[:, None, None] * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).T
        centre = np.array([width / 2, height / 2])
        shift = centre - linear @ centre + self.shift * signed[:, 2:4] * [width, height]
        maps = np.concatenate([linear, shift[:, :, None]], 2)
        maps[:, 0] *= mirrored[:, None]
        maps[:, 0, 2] += np.where(mirrored < 0, width, 0)
        columns, rows = origins(on_device(maps, x), (height, width))
        places = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], -1)
        padding = "border" if self.border == "edge" else "reflection"
        return F.grid_sample(x, places, padding_mode=padding, align_corners=False)


def unit_images(x: Tensor, like: Tensor) -> Tensor:
    """Images in [0, 1] in the dtype of ``like``, from uint8 or floating point ones of a batch."""
    return x.to(like.dtype) / 255 if x.dtype == torch.uint8 else x.to(like.dtype)


def _blurred(x: Tensor, sigma: NDArray[Any]) -> Tensor:
    """Images (n, C, H, W), each under a Gaussian of 5 x 5 pixels of its own sigma; at the border they are mirrored."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    kernel = on_device(weights / weights.sum(1, keepdims=True), x).repeat_interleave(x.shape[1], 0)[:, None]
    planes = F.pad(x, (2, 2, 2, 2), mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernel[:, :, :, None], groups=len(kernel))
    return F.conv2d(planes, kernel[:, :, None], groups=len(kernel)).view(x.shape)
