"""Decoded images in one memory-mapped file."""

import errno
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dafw.data.files import cache_dir, digest, making
from dafw.data.images import as_item, image_stat, load_image
from dafw.data.scaling import Fit
from dafw.errors import UserError
from dafw.files import sync_to_disk
from dafw.names import file_name

log = logging.getLogger(__name__)

_MAGIC = b"dafw-images-1\n\0\0"
_PAGE = 4096
_CHUNK = 64
_EVERY = 10.0
"""Seconds between two messages that say how many images are decoded."""


SCALING = 4
"""Number of the way images are scaled: another way, another cache."""


class CachedRows(Sequence[Any]):
    """Arrays of bytes in one memory-mapped file, so that each is made once. The arrays may differ in shape.

    The file is built when the object is made, by one process while others wait; an interrupted build goes on where it
    stopped. Its name is a hash of ``key``: another key means another file. Every row carries a checksum, compared when
    a process first reads it: a file cut short is completed, and a row that does not match is made again.

    Args:
        key: plain values on which the rows depend.
        shapes: the shape of each row, (n, d), or one shape for all of them.
        make: makes the row of a position, uint8 of its shape.
        names: what a message calls each row.
        name: begins the file's name.
        directory: where the file goes; ``images`` in :func:`dafw.data.files.cache_dir` if ``None``.

    Raises:
        UserError: if there is no room for the file, or what ``make`` raises.
    """

    def __init__(
        self,
        key: Any,
        shapes: NDArray[np.int64] | tuple[int, ...],
        make: Callable[[int], NDArray[np.uint8]],
        *,
        names: Sequence[str],
        name: str,
        directory: Path | None = None,
    ) -> None:
        self.names, self._make, self._shapes = names, make, shapes
        self._key = digest(key)
        folder = cache_dir() / "images" if directory is None else Path(directory)
        self.file = folder / f"{file_name(name)}-{self._key[:16]}.uint8"
        self._checked = np.zeros(len(names), np.bool_)
        self._start = -(-(len(_MAGIC) + 32 + 8 * len(names)) // _PAGE) * _PAGE
        self._row = math.prod(shapes) if isinstance(shapes, tuple) else 0
        self._ends = None if isinstance(shapes, tuple) else shapes.prod(1).cumsum()
        self.bytes = self._start + (self._place(len(names) - 1)[1] if len(names) else 0)
        try:
            with making(self.file):
                if not self._complete():
                    self._build()
        except OSError as error:
            raise self._no_room(error) from error

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return np.array(self.view(index))

    def view(self, index: int) -> NDArray[np.uint8]:
        """A row without a copy: what is not looked at is not read from the file, once the row has been checked.

        What is written into it changes what this process reads later, and not the file.
        """
        index = range(len(self))[index]
        begin, end = self._place(index)
        row: NDArray[np.uint8] = self._rows[begin:end].reshape(self._shape(index))
        if not self._checked[index]:
            if _sum(row.data) != int(self._sums[index]):
                row = self._mend(index)
            self._checked[index] = True
        return row

    def _place(self, index: int) -> tuple[int, int]:
        """Where a row begins and ends, in bytes behind the beginning of the first row."""
        if self._ends is None:
            return index * self._row, (index + 1) * self._row
        return int(self._ends[index - 1]) if index else 0, int(self._ends[index])

    def _shape(self, index: int) -> tuple[int, ...]:
        return self._shapes if isinstance(self._shapes, tuple) else tuple(self._shapes[index].tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_rows", "_sums")}

    @cached_property
    def _rows(self) -> NDArray[np.uint8]:
        return np.memmap(self.file, np.uint8, "c", self._start, (self.bytes - self._start,))

    @cached_property
    def _sums(self) -> NDArray[np.uint64]:
        return np.memmap(self.file, np.uint64, "r", len(_MAGIC) + 32, (len(self.names),))

    def _head(self) -> bytes:
        return _MAGIC + bytes.fromhex(self._key)

    def _complete(self) -> bool:
        if not self.file.exists():
            return False
        with self.file.open("rb") as file:
            whole = self.file.stat().st_size == self.bytes and file.read(len(self._head())) == self._head()
            if whole and np.frombuffer(file.read(8 * len(self.names)), np.uint64).all():
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
            told = time.monotonic()
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for start in range(0, len(todo), _CHUNK):
                    chunk = todo[start : start + _CHUNK]
                    for index, row in zip(chunk, pool.map(self._make, chunk), strict=True):
                        self._write(file, index, row)
                    if time.monotonic() - told > _EVERY:
                        told = time.monotonic()
                        log.info("decoded %d of %d images into %s", start + len(chunk), len(todo), self.file)
            file.truncate(self.bytes)
            sync_to_disk(file)
        self._part.replace(self.file)

    def _missing_rows(self, file: BinaryIO) -> list[int]:
        if file.read(len(self._head())) != self._head():
            file.seek(0)
            file.truncate()
            file.write(self._head() + bytes(8 * len(self.names)))
            return list(range(len(self.names)))
        table = file.read(8 * len(self.names)).ljust(8 * len(self.names), b"\0")
        file.seek(self._start)
        sums = np.frombuffer(table, np.uint64).tolist()
        places = map(self._place, range(len(self)))
        return [i for i, (begin, end) in enumerate(places) if _sum(file.read(end - begin)) != sums[i]]

    def _write(self, file: BinaryIO, index: int, row: NDArray[np.uint8]) -> None:
        file.seek(self._start + self._place(index)[0])
        file.write(row.tobytes())
        file.seek(len(_MAGIC) + 32 + 8 * index)
        file.write(np.uint64(_sum(row.data)).tobytes())

    def _mend(self, index: int) -> NDArray[np.uint8]:
        log.warning("%s is damaged at image %s, which is decoded again", self.file, self.names[index])
        row = self._make(index)
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


class CachedImages(CachedRows):
    """Decoded images in one memory-mapped file, so that only the first epoch ever decodes.

    Item ``i`` is what :func:`dafw.data.images.load_image` returns for path ``i``, bit for bit: uint8
    (3, size, size). An image with another size or time of change means another file. See :class:`CachedRows`.

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
        key = [SCALING, size, fit, [file_mark(self.root, path) for path in paths]]
        super().__init__(key, (size, size, 3), self._decode, names=paths, name=name, directory=directory)

    def __getitem__(self, index: Any) -> Any:
        return as_item(super().__getitem__(index))

    def _decode(self, index: int) -> NDArray[np.uint8]:
        return load_image(self.root / self.paths[index], self.size, self.fit)


def file_mark(root: Path, path: str) -> tuple[str, int, int]:
    """The path of an image file relative to ``root``, its size in bytes, and the time of its last change.

    Raises:
        UserError: naming the file, if it does not exist or is none.
    """
    found = image_stat(root / path)
    return path, found.st_size, found.st_mtime_ns


def _sum(row: bytes | memoryview) -> int:
    """Checksum of a row, never 0: that marks a row which is not there yet."""
    return zlib.crc32(row) | 1 << 32
