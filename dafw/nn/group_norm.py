"""Group normalisation that leaves out the padding of images."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from dafw.nn.layout import BatchLayout
from dafw.nn.precision import full_precision


class GroupNorm(nn.GroupNorm):
    """Normalises each image by the mean and variance of groups of its channels: Wu and He, ECCV 2018.

    https://arxiv.org/abs/1803.08494. No other image, no domain and no running statistic has a part in it. The padding
    of an image has none either, if :attr:`layout` knows the sizes.

    Args:
        num_groups: groups of channels.
        num_channels: C.
        eps: added to the variance.
        affine: whether to learn a scale and a shift per channel.

    Attributes:
        layout: says how large the images are within their padding.
        of_regions: whether the rows are regions rather than images; they have no padding.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_groups, num_channels, eps, affine)
        self.layout = BatchLayout()
        self.of_regions = False
        self.drop: nn.Module | None = None  # what timm's fused layers apply to the result
        self.act: nn.Module | None = None

    @classmethod
    def in_place_of(cls, layer: Any, layout: BatchLayout) -> Self:
        """A layer that holds the scale and shift of another normalisation themselves, so that optimisers stay valid.

        Args:
            layer: group normalisation, whose groups stay; or batch normalisation of C channels, in whose place there
                are 32 groups, or as many as divide both 32 and C. There is one group if it normalises vectors.
            layout: see the class.
        """
        channels = getattr(layer, "num_features", None) or layer.num_channels
        usual = 1 if isinstance(layer, nn.BatchNorm1d) else math.gcd(32, channels)
        new = cls(getattr(layer, "num_groups", usual), channels, layer.eps, affine=False)
        new.affine, new.layout = layer.weight is not None, layout
        new.weight, new.bias = layer.weight, layer.bias
        new.drop, new.act = getattr(layer, "drop", None), getattr(layer, "act", None)
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` (N, C, ...); the result has the same shape and dtype."""
        y = self._normalise(x)
        if self.drop is not None:
            y = self.drop(y)
        return y if self.act is None else self.act(y)

    def _normalise(self, x: Tensor) -> Tensor:
        inside = self.layout.inside(slice(None), *x.shape[2:]) if x.ndim == 4 and not self.of_regions else None
        if inside is None:
            return super().forward(x)
        rows, channels, height, width = x.shape
        groups = full_precision(x).reshape(rows, self.num_groups, channels // self.num_groups, height, width)
        where = inside[:, None].to(groups.dtype)
        count = where.sum((2, 3, 4), keepdim=True) * groups.shape[2]
        mean = (groups * where).sum((2, 3, 4), keepdim=True) / count
        var = ((groups - mean).square() * where).sum((2, 3, 4), keepdim=True) / count
        y: Tensor = ((groups - mean) * torch.rsqrt(var + self.eps)).flatten(1, 2)
        if self.affine:
            y = torch.addcmul(self.bias.view(1, -1, 1, 1), y, self.weight.view(1, -1, 1, 1))
        return y.to(x.dtype)
