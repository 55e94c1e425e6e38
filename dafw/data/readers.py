"""Where images and their masks are read from: files of images, or volumes of slices."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafw.data.cache import file_mark
from dafw.data.images import CorruptImage, image_stat, load_rgb
from dafw.errors import UserError
from dafw.files import reading

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


class Reader(Protocol):
    """Arrays by position, each (h, w) or (h, w, 3)."""

    @property
    def names(self) -> Sequence[str]:
        """The name of each."""

    def mark(self, index: int) -> tuple[str, int, int]:
        """The name, and what changes when the content changes."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, without decoding where that can be done."""

    def read(self, index: int) -> NDArray[Any]:
        """The array."""


class ImageFiles:
    """Images, decoded to uint8 (h, w, 3); see :func:`dafw.data.images.load_rgb`.

    Args:
        paths: files, relative to ``root``.
        root: their folder.
    """

    def __init__(self, paths: Sequence[str], root: Path) -> None:
        self.names, self.root = paths, root

    def mark(self, index: int) -> tuple[str, int, int]:
        """Path, size and time of change."""
        return file_mark(self.root, self.names[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width as the orientation in the file says."""
        return image_size(self.root / self.names[index])

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image."""
        return np.array(load_rgb(self.root / self.names[index]))


class MaskFiles(ImageFiles):
    """Masks as they are stored: numbers, or colours as 0xRRGGBB, (h, w).

    Args:
        paths: files, relative to ``root``.
        root: their folder.
        colours: whether to read colours; otherwise numbers: of a palette, of grey, or of equal channels.
        first: take the first channel of masks whose channels differ.
    """

    def __init__(self, paths: Sequence[str], root: Path, colours: bool, first: bool = False) -> None:
        super().__init__(paths, root)
        self.colours, self.first = colours, first

    def read(self, index: int) -> NDArray[Any]:
        """The mask.

        Raises:
            UserError: naming the file, if it cannot be decoded, or has colours where numbers are asked for.
        """
        path = self.root / self.names[index]
        image_stat(path)
        try:
            with reading("the mask", path):
                deep = _deep_channels(path)
                if deep is not None:
                    return self._numbers(deep, path)
                with Image.open(path) as image:
                    return self._values(image, path)
        except UserError:
            raise
        except Exception as error:  # a decoder meets damaged bytes with almost any exception
            raise CorruptImage(f"the mask {path} cannot be decoded ({error})") from error

    def _values(self, image: Image.Image, path: Path) -> NDArray[Any]:
        if self.colours:
            red, green, blue = np.asarray(image.convert("RGB")).astype(np.uint32).transpose(2, 0, 1)
            return np.asarray(red << 16 | green << 8 | blue, np.uint32)
        found = np.asarray(image)
        return self._numbers(found[..., : 1 if image.mode == "LA" else 3] if found.ndim == 3 else found, path)

    def _numbers(self, found: NDArray[Any], path: Path) -> NDArray[Any]:
        """Numbers (h, w) of an array (h, w) or (h, w, channels)."""
        if found.ndim == 3:
            if not self.first and (found != found[..., :1]).any():
                raise UserError(f"the mask {path} has colours, and the map of classes has numbers: give colours there")
            found = found[..., 0]
        if found.dtype.kind == "b":
            return found.astype(np.uint8)
        if found.dtype.kind not in "ui" or found.min() < 0:
            raise UserError(f"the mask {path} holds numbers that are no whole numbers from 0 on: save it as PNG")
        return found


class Slice(NamedTuple):
    """One slice of a volume: its file, relative to the root, and its number."""

    file: str
    number: int


class Volumes:
    """Slices of the volumes in npz files; an array of several files is read once for all of its slices in a row.

    Args:
        slices: what to read.
        root: folder that their files are relative to.
        key: name of the array in the files: ``images`` (n, h, w) or (n, h, w, 3), or ``masks`` (n, h, w).
    """

    def __init__(self, slices: Sequence[Slice], root: Path, key: str) -> None:
        self.slices, self.root, self.key = slices, root, key
        self.names = [f"{one.file}/{one.number}" for one in slices]

    def mark(self, index: int) -> tuple[str, int, int]:
        """Name of the slice, size and time of change of its file."""
        found = file_mark(self.root, self.slices[index].file)
        return self.names[index], found[1], found[2]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width."""
        height, width = self._volume(index).shape[1:3]
        return height, width

    def read(self, index: int) -> NDArray[Any]:
        """A slice. An image of other numbers than bytes becomes bytes by the least and the largest of its volume."""
        found: NDArray[Any] = self._volume(index)[self.slices[index].number]
        if self.key == "masks":
            return found
        return np.ascontiguousarray(np.broadcast_to(found[..., None], (*found.shape, 3)) if found.ndim == 2 else found)

    def _volume(self, index: int) -> NDArray[Any]:
        path = self.root / self.slices[index].file
        return read_volume(path, self.key, image_stat(path).st_mtime_ns)


@lru_cache(maxsize=4)
def read_volume(path: Path, key: str, changed: int) -> NDArray[Any]:
    """One array of an npz file.

    Args:
        path: the file.
        key: ``images`` or ``masks``.
        changed: its time of change, so that a changed file is read again.

    Raises:
        UserError: naming the file, if it cannot be read, lacks the array, or the array has another form.
    """
    try:
        with reading("the volume", path), np.load(path, allow_pickle=False) as stored:
            found: NDArray[Any] = stored[key]
    except KeyError as error:
        raise UserError(f'the volume {path} holds no array "{key}"') from error
    except UserError:
        raise
    except Exception as error:  # damaged bytes
        raise UserError(f"the volume {path} cannot be read ({error})") from error
    if key == "masks":
        if found.ndim != 3 or found.dtype.kind not in "uib" or found.min() < 0:
            raise UserError(f"the masks of {path} must be whole numbers from 0 on, (slices, height, width)")
        return found.astype(np.uint8) if found.dtype.kind == "b" else found
    if found.ndim not in (3, 4) or found.shape[3:] not in ((), (3,)) or found.dtype.kind not in "uif":
        raise UserError(f"the images of {path} must be numbers (slices, height, width) or (slices, height, width, 3)")
    if found.dtype == np.uint8:
        return found
    if not np.isfinite(found).all():
        raise UserError(f"the images of {path} hold numbers that are not finite")
    low, high = float(found.min()), float(found.max())
    return np.asarray(np.rint(255 * (found - low) / max(high - low, 1e-12)), np.uint8)


def _deep_channels(path: Path) -> NDArray[Any] | None:
    """The channels (h, w, c) of a PNG file with 16 bits a channel, of which Pillow drops the lower 8; else ``None``."""
    with path.open("rb") as file:
        head = file.read(26)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[24] != 16 or head[25] not in (2, 4, 6):
        return None
    import torch
    from torchvision.io import decode_png

    found = decode_png(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)).permute(1, 2, 0).numpy()
    return np.asarray(found[..., : 1 if head[25] == 4 else 3])


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, as the orientation in it says, without decoding it.

    Raises:
        CorruptImage: naming the file, if it is no image.
        UserError: naming the file, if it does not exist or cannot be read.
    """
    image_stat(path)
    try:
        with reading("the image", path), Image.open(path) as image:
            turned = image.getexif().get(0x0112) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except UserError:
        raise
    except Exception as error:  # as above
        raise CorruptImage(f"the image {path} cannot be decoded ({error})") from error
