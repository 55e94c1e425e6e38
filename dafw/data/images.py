"""Image files to uint8 RGB, whatever their format says."""

import json
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from dafw.data.files import cache_dir, digest, making
from dafw.errors import UserError
from dafw.files import write_atomically

log = logging.getLogger(__name__)

Fit = Literal["crop", "squash"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class CorruptImage(UserError):
    """An image file that cannot be decoded."""


def load_rgb(path: Path, at_least: int | None = None) -> Image.Image:
    """One image file as 8-bit RGB.

    The EXIF orientation is applied; transparent parts become white; palettes, grey, CMYK and 16 bits a channel
    become 8-bit RGB.

    Args:
        path: the file.
        at_least: pixels of the short side that are enough, which makes large JPEG files faster to decode.

    Raises:
        CorruptImage: naming the file, if it cannot be decoded.
        UserError: naming the file, if it does not exist.
    """
    try:
        with Image.open(path) as image:
            if at_least is not None and min(image.size) > at_least:
                scale = at_least / min(image.size)
                image.draft(None, (math.ceil(scale * image.width), math.ceil(scale * image.height)))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"the image {path} does not exist") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder meets damaged bytes with almost any exception
        raise CorruptImage(f"the image {path} cannot be decoded ({error})") from error


def load_image(path: Path, size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """One image file as uint8 RGB (size, size, 3); see :func:`load_rgb`.

    Args:
        path: the file.
        size: height and width of the result, in pixels.
        fit: ``crop`` scales the short side to ``size`` and cuts the middle out; ``squash`` scales both sides.

    Raises:
        CorruptImage: naming the file, if it cannot be decoded.
        UserError: naming the file, if it does not exist.
    """
    try:
        image = _fit(load_rgb(path, at_least=math.ceil(1.75 * size)), size, fit)
    except CorruptImage as error:
        raise CorruptImage(
            f"{error}: mend or remove it, or leave such images out with --data.on_corrupt skip"
        ) from error
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, size: int, fit: Fit) -> NDArray[np.uint8]:
    """(size, size, 3). Torch's antialiased scaling of bytes takes a third of PIL's time; they differ by one level."""
    short = min(image.size)
    width, height = (size if side == short or fit == "squash" else int(size * side / short) for side in image.size)
    pixels = torch.from_numpy(np.array(image)).view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
    scaled = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.ascontiguousarray(scaled[top : top + size, left : left + size].numpy())


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
        self.paths, self.root, self.size, self.fit = list(paths), Path(root), size, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return as_item(load_image(self.root / self.paths[index], self.size, self.fit))


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
        image = self.images[index]
        top, left = (round((side - self.size) / 2) for side in image.shape[-2:])
        return image[:, top : top + self.size, left : left + self.size]


def decodes_file(root: Path, name: str) -> Path:
    """Where :func:`find_corrupt` keeps what it found in one domain's folder."""
    return cache_dir() / "decodes" / f"{digest([str(Path(root).resolve()), name])[:16]}.json"


def find_corrupt(paths: Sequence[str], root: Path, known: Path) -> list[str]:
    """Those of ``paths`` that cannot be decoded.

    Each file is decoded in full once; the outcome is kept, so that only new or changed files are read again.

    Args:
        paths: image files, relative to ``root``.
        root: their folder.
        known: file that keeps the outcomes (JSON), written in one step.

    Raises:
        UserError: if one of ``paths`` does not exist.
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
                for path, good in zip(new, pool.map(lambda path: _decodes(Path(root) / path), new), strict=True):
                    outcomes[path] = [marks[path], good]
            write_atomically(known, json.dumps(outcomes))
    return [path for path in paths if not outcomes[path][1]]


def _mark(path: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"the image {path} does not exist") from error
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _decodes(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()
        load_image(path, 32)
    except CorruptImage:
        return False
    except (OSError, ValueError, SyntaxError):
        return False
    return True
