"""The outputs of a network for a batch of images: one kind for class scores, one for masks, one for boxes."""

from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from dafw.data.padding import valid_positions
from dafw.problems.rows import ROW_LIST, SHARED, TensorRows


@runtime_checkable
class RowOutputs(Protocol):
    """Outputs of N images, of any kind: code that needs no more than this works for every problem."""

    @property
    def features(self) -> Tensor:
        """What methods align across domains, (N, d) or (N, d, h, w), with the graph that made it."""

    def __len__(self) -> int:
        """The number N of images."""

    def __getitem__(self, rows: slice) -> Self:
        """The outputs of some of the images."""

    def vectors(self) -> Tensor:
        """One feature vector for each image, (N, d)."""


@dataclass(frozen=True)
class Outputs(TensorRows):
    """Features and class scores of the same samples.

    Attributes:
        features: (N, d), what methods align across domains.
        logits: (N, K), unnormalised class scores.
    """

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]

    def vectors(self) -> Tensor:
        """The features themselves, (N, d)."""
        return self.features


@dataclass(frozen=True)
class MaskOutputs(TensorRows):
    """A feature map and class scores of each pixel of the same images.

    Attributes:
        features: (N, d, h, w), what methods align across domains.
        logits: (N, K, H, W), unnormalised class scores of each pixel of the padded images.
        auxiliary: (N, K, H, W), the scores of an auxiliary head; ``None`` if there is none.
        levels: further feature maps (N, c_i, h_i, w_i), finest first; ``None`` if there are none.
        sizes: (N, 2) int64 on the device, height and width of each image without its padding; ``None`` if every image
            fills the tensor.
    """

    features: Tensor
    logits: Tensor
    auxiliary: Tensor | None = None
    levels: list[Tensor] | None = None
    sizes: Tensor | None = None

    def vectors(self) -> Tensor:
        """The mean of each image's features, (N, d); padding does not count."""
        return mean_over_image(self.features, self.sizes, (self.logits.shape[2], self.logits.shape[3]))

    def valid(self) -> Tensor | None:
        """Which pixels belong to the images, (N, H, W) bool; ``None`` if all do."""
        if self.sizes is None:
            return None
        height, width = self.logits.shape[-2:]
        return valid_positions(self.sizes, (height, width), (height, width))


@dataclass(frozen=True)
class BoxOutputs(TensorRows):
    """All that a detector computes before it looks at labels: losses, proposals and detections follow from it.

    Attributes:
        levels: feature maps (N, c, h_i, w_i) by the names of the levels, in the order of their strides.
        maps: outputs of the heads by name, a list of one (N, A k, h_i, w_i) for each level; A anchors at a position.
        anchors: boxes (A h_i w_i, 4) of each level, as x1, y1, x2, y2 in pixels; all rows share them.
        canvas: height and width of the padded images in pixels; all rows share it.
        sizes: (N, 2) int64 on the device, height and width of each image without its padding; ``None`` if every image
            fills the tensor.
        seeds: a seed for each image, of the random choice of the anchors and regions that count; ``None``: torch's
            default generator chooses.
    """

    levels: dict[str, Tensor]
    maps: dict[str, list[Tensor]]
    anchors: list[Tensor] = field(metadata=SHARED)
    canvas: tuple[int, int] = field(metadata=SHARED)
    sizes: Tensor | None = None
    seeds: list[int] | None = field(default=None, metadata=ROW_LIST)

    @property
    def features(self) -> Tensor:
        """The last and coarsest level, (N, c, h, w), what methods align across domains."""
        return list(self.levels.values())[-1]

    def vectors(self) -> Tensor:
        """The mean of each image's :attr:`features`, (N, c); padding does not count."""
        return mean_over_image(self.features, self.sizes, self.canvas)


@dataclass(frozen=True)
class Regions(TensorRows):
    """What a detector says of R boxes, which need not be its own.

    Attributes:
        features: (R, d).
        logits: class scores (R, K + 1), the background first, if they exclude each other; (R, K) if each class has a
            probability of its own.
        deltas: moves of the box, (R, 4 (K + 1)) with four for each class, or (R, 4).
        image: (R,) int64, the image of each box, from 0.
        exclusive: whether the classes exclude each other.
    """

    features: Tensor
    logits: Tensor
    deltas: Tensor
    image: Tensor
    exclusive: bool = field(default=True, metadata=SHARED)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def probabilities(self) -> Tensor:
        """Probabilities (R, K) of the classes, without the background."""
        return self.logits.softmax(1)[:, 1:] if self.exclusive else self.logits.sigmoid()


def mean_over_image(features: Tensor, sizes: Tensor | None, canvas: tuple[int, int]) -> Tensor:
    """The mean of a feature map over the positions that belong to each image, (N, d, h, w) -> (N, d).

    Args:
        features: of the padded images.
        sizes: see :func:`~dafw.data.padding.valid_positions`; ``None``: every image fills the tensor.
        canvas: see :func:`~dafw.data.padding.valid_positions`.
    """
    if sizes is None:
        return features.mean((2, 3))
    inside = valid_positions(sizes, canvas, (features.shape[2], features.shape[3]))[:, None]
    wide = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    total = wide.masked_fill(~inside, 0).sum((2, 3))
    return (total / inside.sum((2, 3)).clamp_min(1)).to(features.dtype)
