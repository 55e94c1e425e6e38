"""Predictions for files of images: what ``dafw predict RUN --images`` reads."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dafw.data.batch import Batch, Sample, collate
from dafw.data.entries import PassedOver
from dafw.data.manifest import contents
from dafw.data.sampler import ShardSampler
from dafw.errors import UserError, sentence
from dafw.escape import terminal
from dafw.files import user_path

DOMAIN = "images"
"""The domain's name in a file of predictions for images."""


def find_images(given: Sequence[str]) -> list[Path]:
    """The files to predict. What is passed over in folders is said on standard error.

    Args:
        given: files, which are taken as they are, and folders, of which all images are taken, those in inner folders
            too, sorted by their paths.

    Raises:
        UserError: if one does not exist or cannot be read, or if there is no image.
    """
    passed, found = PassedOver(), list[Path]()
    for one in given:
        place = user_path(one)
        if place.is_dir():
            found += sorted(_inside(place, passed, set()))
        elif place.exists() or place.is_symlink():
            found.append(place)
        else:
            raise UserError(f"there is no file or folder {one} (--images)")
    if passed:
        print(terminal(f"dafw: passed over: {passed}"), file=sys.stderr)
    if not found:
        raise UserError(f"{', '.join(given)} (--images) holds no images")
    return list(dict.fromkeys(found))


def _inside(folder: Path, passed: PassedOver, above: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link that leads back
        return
    images, folders = contents(folder, str(folder), passed)
    yield from (folder / name for name in images)
    for name in folders:
        yield from _inside(folder / name, passed, above | {real})


class ImageBatches:
    """Batches of images. A file that cannot be read or decoded is left out, and noted.

    The images of a batch have one size, so that none is padded: what is predicted of an image does not depend on its
    neighbours. Batches in a random order stay whole, since their method looks at all of a batch.

    Args:
        paths: the files.
        prepare: from a file to an input, see :meth:`datamodules.base.DomainDataModule.evaluation_transform`.
        batch_size: images a batch.
        mixed: see :class:`~dafw.data.sampler.ShardSampler`.

    Attributes:
        skipped: by path why a file was left out, after the batches were made.
    """

    def __init__(
        self, paths: Sequence[Path], prepare: Callable[[Any], Any], batch_size: int, mixed: tuple[int, str] | None
    ) -> None:
        self.paths, self.prepare, self.mixed = paths, prepare, mixed is not None
        self.draws = ShardSampler(len(paths), batch_size, mixed=mixed)
        self.skipped: dict[Path, str] = {}

    def __iter__(self) -> Iterator[Batch]:
        """Prepares the images of the next batch while the model has the last one."""
        self.skipped = {}
        waiting: deque[list[tuple[int, Future[Any]]]] = deque()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for draws in self.draws:
                waiting.append([(draw.index, pool.submit(self.prepare, self.paths[draw.index])) for draw in draws])
                if len(waiting) > 1:
                    yield from self._batch(waiting.popleft())
            for rest in waiting:
                yield from self._batch(rest)

    def _batch(self, futures: list[tuple[int, Future[Any]]]) -> Iterator[Batch]:
        samples = []
        for index, future in futures:
            try:
                samples.append(Sample(future.result(), None, 0, index, {}, {}))
            except (UserError, OSError, ValueError) as error:
                self.skipped[self.paths[index]] = sentence(error)
        groups: dict[Any, list[Sample]] = {}
        for one in samples:
            groups.setdefault(None if self.mixed else getattr(one.x, "shape", None), []).append(one)
        yield from map(collate, groups.values())

    def report(self) -> None:
        """Lists on standard error what was left out.

        Raises:
            UserError: if that is every file.
        """
        if len(self.skipped) == len(self.paths):
            first = next(iter(self.skipped.values()))
            raise UserError(f"none of the {len(self.paths)} files of --images can be read: {first}")
        for path, why in self.skipped.items():
            said = why if str(path) in why else f"{path}: {why}"
            print(terminal(f"dafw: skipped: {said}"), file=sys.stderr)
