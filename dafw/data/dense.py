"""Images and masks of any size, scaled alike, decoded each time or kept in a memory-mapped file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from dafw.data.cache import SCALING, CachedRows
from dafw.data.class_map import ClassMap
from dafw.data.images import as_item
from dafw.data.padding import IGNORE
from dafw.data.readers import Reader
from dafw.data.scaling import Size, scaled_size


def scale_pixels(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image (h, w, 3) scaled by antialiased bilinear interpolation, or a mask (h, w) by the nearest pixel."""
    if pixels.shape[:2] == size:
        return pixels
    if pixels.ndim == 2:
        given = torch.from_numpy(np.ascontiguousarray(pixels))[None, None]
        return functional.interpolate(given, size, mode="nearest-exact")[0, 0].numpy()
    given = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    scaled = functional.interpolate(given, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(scaled[0].permute(1, 2, 0).numpy())


class DenseRows(Sequence[Tensor]):
    """Scaled images as tensors (3, h, w), or scaled masks of classes (h, w); all uint8.

    Args:
        reader: gives the images or masks. A mask with an empty name has no label anywhere.
        sizes: (n, 2), height and width of each before it is scaled.
        size: see :func:`scaled_size`.
        classes: what the values of masks mean; ``None`` for images.
        cache: the beginning of the name of the memory-mapped file that keeps all; ``None`` decodes each time.

    Attributes:
        lazily: an item is a window on that file, of which a crop reads its own part alone. Nobody may write into it.
    """

    def __init__(
        self,
        reader: Reader,
        sizes: NDArray[np.int64],
        size: Size | None,
        classes: ClassMap | None = None,
        cache: str | None = None,
    ) -> None:
        self.reader, self.classes = reader, classes
        self.sizes = np.asarray([scaled_size(one, size) for one in sizes.tolist()], np.int64).reshape(-1, 2)
        self.lazily = False
        self.kept: CachedRows | None = None
        if cache is not None:
            known = None if classes is None else sorted(classes.codes.items())
            marks = [reader.mark(index) if name else None for index, name in enumerate(reader.names)]
            shapes = self.sizes if classes is not None else np.pad(self.sizes, ((0, 0), (0, 1)), constant_values=3)
            key = ["dense", SCALING, self.sizes.tolist(), known, marks]
            self.kept = CachedRows(key, shapes, self.make, names=reader.names, name=cache)

    def __len__(self) -> int:
        return len(self.reader.names)

    def __getitem__(self, index: Any) -> Any:
        rows = self.make if self.kept is None else self.kept.view if self.lazily else self.kept.__getitem__
        pixels = rows(index)
        return as_item(pixels) if pixels.ndim == 3 else torch.from_numpy(pixels)

    def make(self, index: int) -> NDArray[np.uint8]:
        """Reads and scales one: (h, w, 3), or (h, w)."""
        height, width = self.sizes[index].tolist()
        if not self.reader.names[index]:
            return np.full((height, width), IGNORE, np.uint8)
        read = self.reader.read(index)
        return scale_pixels(read if self.classes is None else self.classes.encode(read), (height, width))

    def windows(self) -> "DenseRows":
        """The same rows as windows on the memory-mapped file, if there is one; see ``lazily``."""
        made = object.__new__(DenseRows)
        made.__dict__.update(self.__dict__, lazily=True)
        return made


class RandomWindow(v2.RandomCrop):  # type: ignore[misc]
    """A crop at a random place, unscaled; mask and boxes are cropped alike. The result is a copy.

    Args:
        size: height and width of the crop.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops one part of a sample."""
        return super().transform(inpt, params).clone()
