"""Image files to uint8 RGB, whatever their format says."""

import json
import logging
import math
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dafw.data.files import cache_dir, digest, making
from dafw.data.scaling import Fit, cut_middle, fit_pixels, scale_image
from dafw.errors import UserError
from dafw.files import reading, write_atomically

log = logging.getLogger(__name__)

ImageOrPath = Image.Image | str | os.PathLike[str]

_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are tried first."""
_NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow knows, but that it does not decode, or not without another program."""


class CorruptImage(UserError):
    """An image file that cannot be decoded."""


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are read, in the order in which they are tried."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - set(_NOT_READ), key=lambda name: (name not in _COMMON, name)))


@cache
def endings() -> frozenset[str]:
    """The endings of the files that are images, such as ``.jpg``: those of all formats that this Pillow decodes."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in _formats())


def image_stat(path: Path) -> os.stat_result:
    """Size and times of an image file.

    Raises:
        UserError: naming the file, if it does not exist, is no file, or the file system reports an error.
    """
    with reading("the image", path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"the image {path} is not a file: remove it")
    return found


def _read(path: Path) -> bytes:
    """All bytes of the file: what fails here is the file system, what fails later is the image."""
    image_stat(path)  # opening a pipe would wait for ever
    with reading("the image", path):
        return path.read_bytes()


def load_rgb(path: Path, at_least: int | None = None) -> Image.Image:
    """One image file as 8-bit RGB.

    The EXIF orientation is applied; transparent parts become white; palettes, grey, CMYK and 16 bits a channel
    become 8-bit RGB. Numbers of 32 bits become 8-bit RGB if a TIFF file says what range they have.

    Args:
        path: the file.
        at_least: pixels of the short side that are enough, which makes large JPEG files faster to decode.

    Raises:
        CorruptImage: naming the file, if it cannot be decoded.
        UserError: naming the file, if it does not exist, or cannot be read.
    """
    return _decode(path, _read(path), at_least)


def _decode(path: Path, data: bytes, at_least: int | None) -> Image.Image:
    try:
        with Image.open(BytesIO(data), formats=_formats()) as image:
            if at_least is not None and min(image.size) > at_least:
                scale = at_least / min(image.size)
                image.draft(None, (math.ceil(scale * image.width), math.ceil(scale * image.height)))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptImage(f"the image {path} cannot be decoded (its bytes are of no known format)") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise CorruptImage(f"the image {path} cannot be decoded (it has more than {limit:,} pixels)") from error
    except Exception as error:  # a decoder meets damaged bytes with almost any exception
        raise CorruptImage(f"the image {path} cannot be decoded ({error})") from error


def as_rgb(image: ImageOrPath, at_least: int | None = None) -> Image.Image:
    """A file or an image of Pillow as 8-bit RGB; see :func:`load_rgb`. A given image is left as it is.

    Raises:
        CorruptImage: if it cannot be decoded.
        UserError: naming the file, if it does not exist, or cannot be read.
    """
    if not isinstance(image, Image.Image):
        return load_rgb(Path(image), at_least)
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError) as error:  # an image of Pillow may not have been read yet
        raise CorruptImage(f"the image cannot be decoded ({error})") from error


def load_image(path: Path, size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """One image file as uint8 RGB (size, size, 3); see :func:`load_rgb`.

    Args:
        path: the file.
        size: height and width of the result, in pixels.
        fit: ``crop`` scales the short side to ``size`` and cuts the middle out; ``squash`` scales both sides.

    Raises:
        CorruptImage: naming the file, if it cannot be decoded.
        UserError: naming the file, if it does not exist, or cannot be read.
    """
    with advising():
        return _load(path, _read(path), size, fit)


@contextmanager
def advising() -> Iterator[None]:
    """Within, the error of an image that cannot be decoded says what to do."""
    try:
        yield
    except CorruptImage as error:
        raise CorruptImage(
            f"{error}: mend or remove it, or leave such images out with --data.on_corrupt skip"
        ) from error


def _load(path: Path, data: bytes, size: int, fit: Fit) -> NDArray[np.uint8]:
    return _fit(_decode(path, data, at_least=enough(size)), size, fit)


def enough(size: int) -> int:
    """Pixels of the short side from which an image is scaled to ``size`` without a loss that is seen."""
    return math.ceil(1.75 * size)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_levels(np.asarray(image), *_range(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values that stand for black and white in an image of numbers.

    Raises:
        ValueError: if nothing says so.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if image.mode.startswith("I;16"):
        return 0, 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample, which may be 12
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0, 65535
    for low, high in ((340, 341), (280, 281)):  # SMinSampleValue and SMaxSampleValue, MinSampleValue and MaxSampleValue
        black, white = (np.ravel(tags.get(tag, ())).tolist() for tag in (low, high))
        if black and white and black[0] < white[0]:
            return black[0], white[0]
    kind = "floating-point" if image.mode == "F" else "32-bit"
    raise ValueError(f"nothing says which of its {kind} numbers stand for black and white: save it with 8 bits")


def _levels(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """Numbers as 8-bit levels.

    Raises:
        ValueError: if numbers that differ all become black.
    """
    if values.dtype.kind == "f":
        levels = np.rint(255 * (np.clip(np.nan_to_num(values), black, white) - black) / (white - black))
    else:
        low, span = int(black), max(1, int(white) - int(black))
        levels = ((np.clip(values.astype(np.int64) - low, 0, span)) * 255 + span // 2) // span
    found = np.asarray(levels, np.uint8)
    least, most = values.min(), values.max()
    if least < most and not found.any():
        raise ValueError(
            f"its numbers, {least} to {most}, are all black on the scale of {black:g} to {white:g}: save it with 8 bits"
        )
    return found


def _fit(image: Image.Image, size: int, fit: Fit) -> NDArray[np.uint8]:
    """(size, size, 3)."""
    pixels = torch.from_numpy(np.array(image)).view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
    return np.ascontiguousarray(fit_pixels(pixels, size, fit)[0].permute(1, 2, 0).numpy())


def as_item(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (H, W, 3) as a tensor (3, H, W) over the same memory, a layout that torch scales and crops faster."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


class DecodedImages(Sequence[Tensor]):
    """Images decoded from their files each time; item: uint8 (3, size, size).

    Args:
        paths: image files, relative to ``root``.
        root: their folder.
        size: see :func:`load_image`.
        fit: see :func:`load_image`.
    """

    def __init__(self, paths: Sequence[str], *, root: Path, size: int, fit: Fit = "crop") -> None:
        self.paths, self.root, self.size, self.fit = paths, Path(root), size, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return as_item(load_image(self.root / self.paths[index], self.size, self.fit))


class OriginalImages(Sequence[Tensor]):
    """Images decoded from their files each time, neither scaled nor cut; item: uint8 (3, H, W).

    Args:
        paths: image files, relative to ``root``.
        root: their folder.
        size: pixels of the network's input. A JPEG is decoded at a half, a quarter or an eighth of its size if its
            short side then still has two and a half times as many pixels.
    """

    def __init__(self, paths: Sequence[str], *, root: Path, size: int) -> None:
        self.paths, self.root, self.size = paths, Path(root), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path = self.root / self.paths[index]
        with advising():
            return as_item(np.array(load_rgb(path, at_least=math.ceil(2.5 * self.size))))


class CentreCropped(Sequence[Tensor]):
    """The middle (3, size, size) of images that are at least that large.

    Args:
        images: uint8 (3, H, W) each.
        size: height and width of an item, in pixels.
    """

    def __init__(self, images: Sequence[Tensor], size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return cut_middle(self.images[index], self.size)


class Scaled(CentreCropped):
    """As the base, but all of each image, scaled to (3, size, size)."""

    def __getitem__(self, index: Any) -> Any:
        return scale_image(self.images[index], self.size)


_DECODING = 2
"""Number of the rules by which an image can be decoded: other rules, another file of outcomes."""


def decodes_file(root: Path, name: str) -> Path:
    """Where :func:`find_corrupt` keeps what it found in one domain's folder."""
    return cache_dir() / "decodes" / f"{digest([_DECODING, str(Path(root).resolve()), name])[:16]}.json"


def find_corrupt(paths: Sequence[str], root: Path, known: Path) -> list[str]:
    """Those of ``paths`` that cannot be decoded.

    Each file is decoded in full once; the outcome is kept, so that only new or changed files are read again. A file
    that the file system does not give is not one that cannot be decoded: nothing is kept of it.

    Args:
        paths: image files, relative to ``root``.
        root: their folder.
        known: file that keeps the outcomes (JSON), written in one step.

    Raises:
        UserError: naming the file, if one of ``paths`` does not exist, or cannot be read.
    """
    with making(known):
        try:
            outcomes = json.loads(known.read_bytes()) if known.exists() else {}
        except ValueError:
            log.warning("%s is damaged: checking all images again", known)
            outcomes = {}
        marks = {path: _mark(Path(root) / path) for path in paths}
        new = [path for path, mark in marks.items() if outcomes.get(path, [None])[0] != mark]
        if new:
            log.info("checking that %d images can be decoded", len(new))
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                try:
                    for path, good in zip(new, pool.map(lambda path: _decodes(Path(root) / path), new), strict=True):
                        outcomes[path] = [marks[path], good]
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)
                    write_atomically(known, json.dumps(outcomes))
    return [path for path in paths if not outcomes[path][1]]


def _mark(path: Path) -> str:
    found = image_stat(path)
    return f"{found.st_size}-{found.st_mtime_ns}"


def _decodes(path: Path) -> bool:
    data = _read(path)
    try:
        with Image.open(BytesIO(data), formats=_formats()) as image:
            image.verify()
        _load(path, data, 32, "crop")
    except MemoryError:
        raise
    except Exception:  # as in :func:`_decode`
        return False
    return True
