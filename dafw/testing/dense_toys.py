"""Tiny masks and boxes, and a tiny network for masks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dafw.data import Domain
from dafw.data.padding import IGNORE
from dafw.data.roles import Split
from dafw.problems import MaskOutputs, NetworkBase

#: Height and width of the images, one after the other, where they differ.
SIZES = ((8, 8), (6, 8), (8, 5), (7, 6))


def generator(name: str, split: Split) -> np.random.Generator:
    """Random numbers that are always the same for one split of one domain."""
    return np.random.default_rng([sum(name.encode()), ("train", "val", "test").index(split)])


def style(name: str) -> tuple[float, float]:
    """Contrast and offset by which a domain's images differ from those of others."""
    return (1.0, 0.0) if name == "a" else (0.6, 0.1 + 0.02 * (sum(name.encode()) % 10))


def toy_masks(name: str, count: int, split: Split = "train", classes: int = 3, sizes: bool = False) -> Domain:
    """Images (3, 8, 8) of a bright or a dark rectangle on grey, with masks; a pixel in each corner has no label.

    Args:
        name: of the domain.
        count: number of samples.
        split: of the domain.
        classes: number of classes; class 0 is the ground.
        sizes: whether the images differ in size.
    """
    rng, (gain, offset) = generator(name, split), style(name)
    levels = np.concatenate([[0.4], np.linspace(0.0, 1.0, classes - 1)])
    images, masks = [], []
    for index in range(count):
        height, width = SIZES[index % len(SIZES)] if sizes else SIZES[0]
        mask = np.zeros((height, width), np.int64)
        top, left = rng.integers(0, height - 3), rng.integers(0, width - 3)
        mask[top : top + 4, left : left + 4] = 1 + index % (classes - 1)
        pixels = gain * 0.7 * levels[mask] + offset + 0.2 * rng.random((3, height, width))
        mask[0, 0] = IGNORE
        images.append(torch.from_numpy((255 * pixels.clip(0, 1)).astype(np.uint8)))
        masks.append(torch.from_numpy(mask.astype(np.uint8)))
    return Domain(name, images, masks)


def toy_boxes(name: str, count: int, split: Split = "train", classes: int = 3) -> Domain:
    """Images (3, 32, 32) of one or two rectangles on grey, with their boxes; the colour shows the class.

    Args:
        name: of the domain.
        count: number of samples.
        split: of the domain.
        classes: number of classes.
    """
    rng, (gain, offset) = generator(name, split), style(name)
    colours = np.random.default_rng(7).random((classes, 3))
    images, labels = [], []
    for index in range(count):
        pixels = gain * (0.4 + 0.2 * rng.random((3, 32, 32))) + offset
        boxes, chosen = [], [(index + place) % classes for place in range(1 + index % 2)]
        for place, label in enumerate(chosen):
            (height, width), top = rng.integers(9, 15, 2), int(rng.integers(0, 2)) + 16 * place
            left = int(rng.integers(0, 32 - width))
            pixels[:, top : top + height, left : left + width] = gain * colours[label][:, None, None] + offset
            boxes.append([left, top, left + width, top + height])
        images.append(torch.from_numpy((255 * pixels.clip(0, 1)).astype(np.uint8)))
        labels.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(chosen)})
    return Domain(name, images, labels)


class ToySegmenter(NetworkBase):
    """A convolution, a batch norm, a pixelwise layer, a pixelwise head: images (N, 3, H, W) -> masks' scores.

    Only the first layer looks beyond a pixel. So an image has the same outputs within any padding.

    Args:
        auxiliary: whether there is an auxiliary head.
        base: see :class:`~dafw.problems.model.NetworkBase`.
    """

    def __init__(self, auxiliary: bool = False, **base: Any) -> None:
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Tanh()]
        super().__init__(nn.Sequential(*layers), 8, **base)
        self.auxiliary = auxiliary

    def make_head(self, num_classes: int) -> nn.Module:
        """One pixelwise layer, or two next to each other."""
        heads = {name: nn.Conv2d(8, num_classes, 1) for name in ("main", *["auxiliary"] * self.auxiliary)}
        return nn.ModuleDict(heads)

    def forward(self, x: Any, sizes: Tensor | None = None) -> MaskOutputs:
        """Outputs of images."""
        features, head = self.encode(x, sizes), self.label_head()
        assert isinstance(head, nn.ModuleDict)
        found = {name: layer(features) for name, layer in head.items()}
        return MaskOutputs(features, found["main"], found.get("auxiliary"), sizes=sizes)
