"""Decoded images in one memory-mapped file."""

import errno
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.files import cache_dir, digest, making
from dafw.data.images import Fit, as_item, image_stat, load_image
from dafw.errors import UserError
from dafw.files import sync_to_disk
from dafw.names import file_name

log = logging.getLogger(__name__)

_MAGIC = b"dafw-images-1\n\0\0"
_PAGE = 4096
_CHUNK = 64


SCALING = 4
"""Number of the way images are scaled: another way, another cache."""


class CachedImages(Sequence[Tensor]):
    """Decoded images in one memory-mapped file, so that only the first epoch ever decodes.

    Item ``i`` is what :func:`dafw.data.images.load_image` returns for path ``i``, bit for bit: uint8
    (3, size, size). The file is built when the object is made, by one process while others wait; an
    interrupted build goes on where it stopped. Its name is a hash of the relative paths, sizes and times of change
    of the images and of the parameters: a changed image means another file. Every row carries a checksum, compared
    when a process first reads it: a file cut short is completed, and a row that does not match is decoded again.

    Args:
        paths: image files, relative to ``root``.
        root: their folder.
        size: height and width of the stored images, in pixels.
        fit: see :func:`dafw.data.images.load_image`.
        name: begins the file's name.
        directory: where the file goes; ``images`` in :func:`dafw.data.files.cache_dir` if ``None``.

    Raises:
        UserError: if an image is missing or cannot be read or decoded, or there is no room for the file.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        root: Path,
        size: int,
        fit: Fit = "crop",
        name: str = "images",
        directory: Path | None = None,
    ) -> None:
        self.root, self.size, self.fit = Path(root), size, fit
        self.paths = paths
        self._key = digest([SCALING, size, fit, [self._stat(path) for path in self.paths]])
        folder = cache_dir() / "images" if directory is None else Path(directory)
        self.file = folder / f"{file_name(name)}-{self._key[:16]}.uint8"
        self._shape = (len(self.paths), size, size, 3)
        self._checked = np.zeros(len(self.paths), np.bool_)
        self._start = -(-(len(_MAGIC) + 32 + 8 * len(self.paths)) // _PAGE) * _PAGE
        self._row = 3 * size * size
        self.bytes = self._start + len(self.paths) * self._row
        try:
            with making(self.file):
                if not self._complete():
                    self._build()
        except OSError as error:
            raise self._no_room(error) from error

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        row = np.array(self._rows[index])
        if not self._checked[index]:
            if _sum(row.data) != int(self._sums[index]):
                row = self._mend(index)
            self._checked[index] = True
        return as_item(row)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_rows", "_sums")}

    @cached_property
    def _rows(self) -> NDArray[np.uint8]:
        return np.memmap(self.file, np.uint8, "r", self._start, self._shape)

    @cached_property
    def _sums(self) -> NDArray[np.uint64]:
        return np.memmap(self.file, np.uint64, "r", len(_MAGIC) + 32, (len(self.paths),))

    def _stat(self, path: str) -> tuple[str, int, int]:
        found = image_stat(self.root / path)
        return path, found.st_size, found.st_mtime_ns

    def _head(self) -> bytes:
        return _MAGIC + bytes.fromhex(self._key)

    def _complete(self) -> bool:
        if not self.file.exists():
            return False
        with self.file.open("rb") as file:
            whole = self.file.stat().st_size == self.bytes and file.read(len(self._head())) == self._head()
            if whole and np.frombuffer(file.read(8 * len(self.paths)), np.uint64).all():
                return True
        log.warning("%s is damaged and will be completed from the images", self.file)
        self.file.replace(self._part)
        return False

    @property
    def _part(self) -> Path:
        return self.file.with_name(self.file.name + ".part")

    def _build(self) -> None:
        present = self._part.stat().st_size if self._part.exists() else 0
        if shutil.disk_usage(self.file.parent).free < self.bytes - present:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._part.open("r+b" if present else "w+b") as file:
            todo = self._missing_rows(file)
            log.info("decoding %d of %d images into %s (%d bytes)", len(todo), len(self), self.file, self.bytes)
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for start in range(0, len(todo), _CHUNK):
                    chunk = todo[start : start + _CHUNK]
                    for index, row in zip(chunk, pool.map(self._decode, chunk), strict=True):
                        self._write(file, index, row)
            file.truncate(self.bytes)
            sync_to_disk(file)
        self._part.replace(self.file)

    def _missing_rows(self, file: BinaryIO) -> list[int]:
        if file.read(len(self._head())) != self._head():
            file.seek(0)
            file.truncate()
            file.write(self._head() + bytes(8 * len(self.paths)))
            return list(range(len(self.paths)))
        table = file.read(8 * len(self.paths)).ljust(8 * len(self.paths), b"\0")
        file.seek(self._start)
        sums = np.frombuffer(table, np.uint64)
        return [i for i, known in enumerate(sums.tolist()) if _sum(file.read(self._row)) != known]

    def _decode(self, index: int) -> NDArray[np.uint8]:
        return load_image(self.root / self.paths[index], self.size, self.fit)

    def _write(self, file: BinaryIO, index: int, row: NDArray[np.uint8]) -> None:
        file.seek(self._start + index * self._row)
        file.write(row.tobytes())
        file.seek(len(_MAGIC) + 32 + 8 * index)
        file.write(np.uint64(_sum(row.data)).tobytes())

    def _mend(self, index: int) -> NDArray[np.uint8]:
        log.warning("%s is damaged at image %s, which is decoded again", self.file, self.paths[index])
        row = self._decode(index)
        try:
            with making(self.file), self.file.open("r+b") as file:
                self._write(file, index, row)
        except OSError as error:
            log.warning("%s cannot be mended: %s", self.file, error)
        return row

    def _no_room(self, error: OSError) -> UserError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"the image cache {self.file} needs {self.bytes} bytes, more than its disk has free")
        return UserError(f"the image cache {self.file} cannot be written ({error}): set DAFW_CACHE to another folder")


def _sum(row: bytes | memoryview) -> int:
    """Checksum of a row, never 0: that marks a row which is not there yet."""
    return zlib.crc32(row) | 1 << 32
