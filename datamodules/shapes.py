"""Shapes on photographs, by day, at night and in haze: a benchmark of masks that needs no download."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dafw.data.domain import ArrayImages, Domain
from dafw.data.files import Arrays
from dafw.data.images import ImageOrPath
from dafw.data.preparing import Squashed
from dafw.data.readers import image_size
from dafw.data.references import References
from dafw.data.roles import Split
from dafw.errors import choose
from datamodules.base import DomainDataModule
from datamodules.shape_images import CLASSES, SIDE, scenes, shifted

#: Number of scenes in each split of a domain.
COUNTS: dict[Split, int] = {"train": 400, "val": 100, "test": 150}


SHIFTED = "day_shifted"


class ShapesOnPhotos(DomainDataModule):
    """Masks of disks, squares and triangles on photographs: 64 x 64 pixels, 4 classes, nothing to download.

    A shape is filled with grey photograph times the colour of its class: red disks, green squares, blue triangles. The
    photographs are scikit-learn's two. Training takes their left halves, validation and test their right halves. No two
    domains or splits show the same scene. Each scene is a function of its domain, its split and its number.

    * ``day``: the scenes as they are;
    * ``night``: darker, blue, blurred and noisy;
    * ``haze``: the colours of the classes change places, and a veil lies over all. What was learnt by day misleads
      here, so no gain is to be expected: a negative control;
    * ``day_shifted``: as ``day``, with masks that are moved by 3 to 5 pixels: noisy labels.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        base: see :class:`datamodules.base.DomainDataModule`.
    """

    domain_names: tuple[str, ...] = ("day", "night", "haze", "day_shifted")
    class_names: tuple[str, ...] = CLASSES

    def __init__(self, source: str | list[str], target: str | list[str], **base: Any) -> None:
        super().__init__(source, target, **base)

    def prepare_data(self) -> None:
        """Draws the scenes, in one process of each machine."""
        for name in (*self.source, *self.target):
            for split in COUNTS:
                self.load(name, split)

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain: uint8 images (3, 64, 64) and masks (64, 64).

        Raises:
            UserError: for an unknown domain or split.
        """
        choose("domain", name, self.domain_names)
        choose("split", split, COUNTS)
        return _domain(name, split)

    def references(self, name: str, split: Split) -> References:
        """The scenes of a split by day, pixel by pixel.

        Raises:
            UserError: for an unknown domain or split, or for a domain that shows the day itself.
        """
        choose("domain with references", name, ("night", "haze"))
        choose("split", split, COUNTS)
        count = COUNTS[split]
        return References(ArrayImages(_scenes("day", name, split)["images"]), np.arange(count))

    def view(self, name: str) -> Callable[[Any], Any]:
        """The named augmentation, for an extra view of an image."""
        from dafw.data.transforms import named_view

        return named_view(name, SIDE)

    def evaluation_transform(self) -> Callable[[ImageOrPath], Tensor]:
        """From a file or an image of Pillow to uint8 (3, 64, 64): both sides are scaled.

        See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`.
        """
        return Squashed(SIDE)

    def original_size(self, sample: str) -> tuple[int, int] | None:
        """Height and width of a file; ``None`` for a scene, which was scaled from no file."""
        path = Path(sample)
        return image_size(path) if path.is_absolute() and path.is_file() else None


def _scenes(style: str, name: str, split: Split) -> Arrays:
    """The scenes of a domain's split in a style."""
    return scenes(style, _seed(name, split), COUNTS[split], left=split == "train")


def _seed(name: str, split: Split) -> int:
    return 3 * ShapesOnPhotos.domain_names.index(name) + list(COUNTS).index(split)


@lru_cache(maxsize=12)
def _domain(name: str, split: Split) -> Domain:
    found = _scenes("day" if name == SHIFTED else name, name, split)
    masks = found["masks"]
    if name == SHIFTED:
        masks = np.stack([shifted(mask, _seed(name, split), index) for index, mask in enumerate(masks)])
    ids = [f"{name}/{split}/{index}" for index in range(COUNTS[split])]
    return Domain(name, ArrayImages(found["images"]), list(torch.from_numpy(masks)), ids)
