"""Loading JPEG files: the training loader of ImageFolderDomains beside a bare loop that only decodes and scales.

The bare loop opens each file with PIL, decodes it, makes it RGB and scales it to what the datamodule scales it to; no
tensor, no augmentation, nothing sent between processes. The loader does all of that, augments (random crop, scale,
flip), makes tensors and stacks them to batches. Both use the same number of worker processes, started beforehand, and
files that the operating system holds in memory.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from harness import Measure, interleave, say, timed
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from datamodules import ImageFolderDomains

DOMAINS, CLASSES = ("one", "two"), ("a", "b", "c", "d")


@dataclass(frozen=True)
class Setting:
    """What is loaded.

    Args:
        side: height and width of the JPEG files, in pixels.
        files: how many there are.
        steps: batches of a timed pass, a multiple of each number of workers.
        batch: images of each of the two domains in a batch.
        workers: numbers of worker processes, each timed on its own; 0 loads in the main process.
        resize: height and width that a file is scaled to, in pixels.
        size: height and width of what a network sees, in pixels.
        rounds: rounds of two passes of each contender.
    """

    side: int
    files: int
    steps: int
    batch: int = 32
    workers: tuple[int, ...] = (2, 0)
    resize: int = 256
    size: int = 224
    rounds: int = 5

    @property
    def images(self) -> int:
        """Images of a timed pass."""
        return 2 * self.batch * self.steps


SETTINGS = (Setting(300, 400, steps=8), Setting(1000, 100, steps=4, rounds=3))
QUICK = (Setting(48, 16, steps=2, batch=4, resize=32, size=24, rounds=1),)


def write_files(root: Path, count: int, side: int, seed: int = 0) -> list[Path]:
    """Random parts of scikit-learn's two photographs, mirrored at their edges where they are too small, as JPEG files.

    Args:
        root: gets ``<domain>/<class>/<number>.jpg``.
        count: how many files.
        side: their height and width, in pixels.
        seed: seed of the parts.
    """
    rng = np.random.default_rng(seed)
    photographs = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        more = [(0, max(0, side + 64 - height)), (0, max(0, side + 64 - width)), (0, 0)]
        photographs.append(np.pad(photograph, more, mode="symmetric"))
    paths = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (int(rng.integers(0, room - side + 1)) for room in photograph.shape[:2])
        domain, label = DOMAINS[number % 2], CLASSES[number // 2 % len(CLASSES)]
        paths.append(root / domain / label / f"{number:04d}.jpg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + side, left : left + side]).save(paths[-1], quality=90)
    return paths


def decode(path: Path, resize: int) -> None:
    """What the bare loop does with one file; nothing is returned, so that nothing is sent to another process."""
    with Image.open(path) as image:
        image.convert("RGB").resize((resize, resize), Image.Resampling.BILINEAR)


class Usual(Dataset[Any]):
    """The pipeline of most training scripts: PIL, scale, random crop, flip, a float tensor, normalised.

    Args:
        paths: the files.
        resize: height and width that a file is scaled to.
        size: height and width of an item.
    """

    def __init__(self, paths: list[Path], resize: int, size: int) -> None:
        self.paths = paths
        self.transform = v2.Compose(
            [
                v2.Resize(resize),
                v2.RandomResizedCrop(size),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """Image and label."""
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), index % 4


def seconds_of(run: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def exhaust(loader: DataLoader[Any], batches: int) -> None:
    """Takes every batch.

    Raises:
        AssertionError: if there are not as many as there should be.
    """
    found = sum(1 for _ in loader)
    assert found == batches, (found, batches)


def contenders(
    setting: Setting, paths: list[Path], root: Path, workers: int, stack: ExitStack
) -> dict[str, Callable[[], float]]:
    """Each loads ``setting.images`` images and returns the seconds it took."""
    todo = list(islice(cycle(paths), setting.images))
    bare: Callable[[], Any]
    if workers:
        pool = multiprocessing.get_context("fork").Pool(workers, signal.signal, (signal.SIGTERM, signal.SIG_DFL))
        stack.callback(pool.join)
        stack.callback(pool.close)  # comes first, so that the workers end by themselves
        bare = partial(pool.map, partial(decode, resize=setting.resize), todo, 8)
    else:

        def bare() -> None:
            for path in todo:
                decode(path, setting.resize)

    loaders = {}
    for name, cache in (("dafw", False), ("dafw cached", True)):
        data = ImageFolderDomains(
            *DOMAINS,
            root=str(root),
            cache=cache,
            split=(1.0, 0.0, 0.0),
            size=setting.size,
            resize=setting.resize,
            batch_size=setting.batch,
            steps_per_epoch=setting.steps,
            num_workers=workers,
        )
        data.setup("fit")
        loaders[name] = data.train_dataloader()
    loaders["usual"] = DataLoader(
        Usual(todo, setting.resize, setting.size),
        batch_size=2 * setting.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    passes = {name: partial(exhaust, loader, setting.steps) for name, loader in loaders.items()}
    return {name: partial(seconds_of, run) for name, run in {"bare": bare, **passes}.items()}


def measure(quick: bool = False) -> list[Measure]:
    """Images a second of each, from JPEG files of each size, and of images with boxes."""
    measures = []
    for setting in QUICK if quick else SETTINGS:
        with TemporaryDirectory() as name, patch.dict(os.environ, DAFW_CACHE=f"{name}/cache"):
            root = Path(name) / "images"
            paths = write_files(root, setting.files, setting.side)
            size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
            say(f"loader: {setting.files} JPEG files of {setting.side} px, {size:.0f} kB each")
            for workers in setting.workers:
                measures += _measure(setting, paths, root, workers)
    return measures


def _measure(setting: Setting, paths: list[Path], root: Path, workers: int) -> list[Measure]:
    title = f"JPEG {setting.side} px, {workers} workers"
    with ExitStack() as stack:
        taken = interleave(contenders(setting, paths, root, workers, stack), setting.rounds, f"loader, {title}, s")
    speed = {name: [setting.images / seconds for seconds in values] for name, values in taken.items()}
    return [
        timed(f"{title}; bare loop", "/s", speed["dafw"], speed["bare"], limit=0.9, at_most=False),
        timed(f"{title}; usual pipeline", "/s", speed["dafw"], speed["usual"]),
        timed(f"{title}, cached; bare loop", "/s", speed["dafw cached"], speed["bare"], limit=5.0, at_most=False),
        timed(f"{title}, cached; usual pipeline", "/s", speed["dafw cached"], speed["usual"]),
    ]
