"""What is known of images and masks once each has been looked at: their sizes, and what is in the masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafw.data.class_map import ClassMap
from dafw.data.looking import look_once
from dafw.data.readers import Reader
from dafw.errors import UserError

_MOST = 300
"""Numbers or colours of one mask that are counted; a file with more of them is a photograph."""


@dataclass(frozen=True)
class Facts:
    """Facts about the n samples of a domain.

    Args:
        sizes: (n, 2) int64, height and width of each image.
        mask_sizes: the same of each mask; ``None`` if the domain has none.
        found: for each mask the number of pixels of each number or colour; empty without masks.
    """

    sizes: NDArray[np.int64]
    mask_sizes: NDArray[np.int64] | None
    found: Sequence[dict[int, int]]

    def class_pixels(self, classes: ClassMap) -> NDArray[np.int64]:
        """Pixels of each class in each mask, (n, K)."""
        return np.stack([classes.counts(one) for one in self.found])

    def check(self, images: Reader, masks: Reader, classes: ClassMap, root: Path) -> None:
        """Compares masks with their images and with the classes.

        Raises:
            UserError: naming the first image and mask of different sizes, or the first mask with an unknown number.
        """
        assert self.mask_sizes is not None
        for index in np.flatnonzero((self.sizes != self.mask_sizes).any(1)).tolist():
            image, mask = (f"{one[index][0]}x{one[index][1]}" for one in (self.sizes, self.mask_sizes))
            raise UserError(
                f"the image {root / images.names[index]} is {image} (height x width) and its mask "
                f"{root / masks.names[index]} is {mask}: give both one size"
            )
        for index, one in enumerate(self.found):
            if (strange := classes.unknown(one)) is not None:
                what, count = strange
                raise UserError(
                    f"{count} pixels of the mask {root / masks.names[index]} have {what}, which {classes.where} does "
                    "not name: add it there, or to data.ignored"
                )


def find_facts(name: str, images: Reader, masks: Reader | None, kind: str, root: Path) -> Facts:
    """Looks at each image and mask once. What was found is kept, so that only new or changed files are read again.

    Args:
        name: of the domain.
        images: the images, of which headers alone are read.
        masks: their masks, which are decoded; ``None`` without. A mask with an empty name is none.
        kind: how masks are read, ``ids`` or ``colours``.
        root: folder of the files.

    Raises:
        UserError: naming the file, if one does not exist or cannot be read.
    """
    known_masks = [masks if masks is not None and masks.names[i] else None for i in range(len(images.names))]
    marks = [[images.mark(i), None if one is None else one.mark(i)] for i, one in enumerate(known_masks)]
    rows = look_once(
        "masks",
        [str(root.resolve()), name, kind],
        marks,
        lambda index: _look(images, known_masks[index], index),
        "images" if masks is None else "masks",
    )
    sizes = np.asarray([row[0] for row in rows], np.int64).reshape(-1, 2)
    if masks is None:
        return Facts(sizes, None, ())
    found_codes = [{int(code): count for code, count in row[2].items()} for row in rows]
    return Facts(sizes, np.asarray([row[1] for row in rows], np.int64).reshape(-1, 2), found_codes)


def _look(images: Reader, masks: Reader | None, index: int) -> list[Any]:
    size = list(images.size(index))
    if masks is None:
        return [size, size, {}]
    raw = masks.read(index)
    if raw.dtype == np.uint8:
        counts = np.bincount(raw.ravel(), minlength=256)
        codes = np.flatnonzero(counts)
        counts = counts[codes]
    else:
        codes, counts = np.unique(raw, return_counts=True)
    often = np.argsort(-counts, kind="stable")[:_MOST]
    return [size, list(raw.shape), {str(int(codes[i])): int(counts[i]) for i in often}]
