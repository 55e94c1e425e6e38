"""A training step of the methods for masks beside the supervised step of as many images: time, memory, passes, reads.

The supervised step is SourceOnly's with as many labelled images as the method has images of source and target together.
That beside CMA's has as many as CMA has of the target. Then the loader of crops, and the time of the metrics.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from harness import Measure, counted, interleave, say, timed
from loader import exhaust, seconds_of
from methods import Timed
from PIL import Image
from sklearn.datasets import load_sample_images
from step import Weigh

import dafw.methods
from dafw.data import Domain
from dafw.data.references import References
from dafw.data.roles import Split
from dafw.methods.segmentation.dacs import Masked
from dafw.nn.segmentation import SegmentationNetwork
from dafw.problems import Segmentation
from dafw.testing.steps import StepWatch
from dafw.testing.toys import toy_trainer
from datamodules import MaskFolders
from datamodules.base import DomainDataModule

#: What is no method's own name: the method, and arguments.
ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {"Dacs with MIC": ("Dacs", {"masked": Masked()})}
#: The methods that see no source, with what a step may take as a multiple of the supervised step of the target's rows.
SOURCE_FREE: dict[str, float] = {"CMA": 2.6}
#: Seconds of the metrics, and crops a second that one worker must give.
EVALUATION, LEAST_CROPS = 5.0, 40.0
#: The methods, with what a step of each may take as a multiple of the supervised step: its time and its memory.
METHODS: dict[str, dict[str, float]] = {
    "SourceOnly": {},
    "DANN": {},
    "DeepCORAL": {},
    "AdaptSegNet": {},
    "MinEnt": {},
    "Advent": {"limit": 1.4, "memory": 1.15},
    "ParetoAdvent": {"limit": 1.4 * 1.6},
    "Dacs": {"limit": 1.4},
    "Dacs with MIC": {"limit": 1.4 + 0.6},
    "DAFormer": {"limit": 1.4},
}


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        arch: of the network.
        encoder: of the network; ``None`` for an architecture with one of its own.
        size: height and width of the images, in pixels.
        batch: source images a step, and as many target images.
        steps: timed steps of a run.
        rounds: rounds of two runs of each method.
        only: names of methods; all that there are if empty.
    """

    arch: str = "unet"
    encoder: str | None = "tf_efficientnet_lite0"
    size: int = 128
    batch: int = 4
    steps: int = 8
    rounds: int = 3
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The network and the images."""
        network = self.arch if self.encoder is None else f"{self.arch} {self.encoder}"
        return f"{network}, {self.size} px, {self.batch} + {self.batch}"


QUICK = Setting("tiny_unet", None, 32, batch=2, steps=2, rounds=1, only=("SourceOnly", "DANN", "CMA"))
WARMUP = 2
START = "start.ckpt"
"""The model of the source, which the first training of SourceOnly leaves."""


class Scenes(DomainDataModule):
    """Random images with random masks of four classes, in memory.

    Args:
        size: height and width, in pixels.
        base: see :class:`~datamodules.base.DomainDataModule`.
    """

    domain_names = ("day", "night")
    class_names = ("ground", "disk", "square", "triangle")

    def __init__(self, size: int, **base: Any) -> None:
        super().__init__("day", "night", **base)
        self.size = size

    def load(self, name: str, split: Split) -> Domain:
        """As many images that a tenth of them makes a batch."""
        rng = np.random.default_rng([len(name), len(split)])
        images = list(torch.from_numpy(rng.integers(0, 256, (64, 3, self.size, self.size), dtype=np.uint8)))
        masks = rng.integers(0, 4, (64, self.size, self.size), dtype=np.uint8)
        return Domain(name, images, list(torch.from_numpy(masks)), references=References(images, np.arange(64)))


def train(setting: Setting, name: str, folder: Path, steps: int, *watches: Any, rows: int | None = None) -> None:
    """Some steps of one method from its first ones on, without validation.

    Args:
        setting: what is trained.
        name: of the method.
        folder: for what it writes, and for the model of the source that others start from.
        steps: how many.
        watches: callbacks.
        rows: images of each domain in a batch; as the setting has them if ``None``, SourceOnly twice as many.
    """
    kind, arguments = ARGUMENTS.get(name, (name, {}))
    owner = getattr(dafw.methods, kind)
    if rows is None:
        rows = 2 * setting.batch if name == "SourceOnly" else setting.batch
    if owner.setting.starts_from_model:
        arguments = {**arguments, "checkpoint": str(folder / START)}
    torch.manual_seed(0)
    network = SegmentationNetwork(setting.arch, setting.encoder, auxiliary=name == "AdaptSegNet")
    method = owner(network, num_classes=4, problem=Segmentation(), **arguments)
    data = Scenes(setting.size, batch_size=rows, steps_per_epoch=steps)
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 1000}
    trainer = toy_trainer(folder, epochs=1, callbacks=list(watches), **options)
    trainer.fit(method, datamodule=data)
    if name == "SourceOnly" and not (folder / START).exists():
        trainer.save_checkpoint(folder / START)


def step_time(setting: Setting, name: str, folder: Path, rows: int | None = None) -> float:
    """Milliseconds a step."""
    clock = Timed(WARMUP, WARMUP + setting.steps)
    train(setting, name, folder, WARMUP + setting.steps + 1, clock, rows=rows)
    return 1e3 * clock.per_step


def evaluation_time(images: int, size: tuple[int, int], classes: int = 19) -> float:
    """Seconds that the metrics take of masks of so many pixels (height, width), in batches of four."""
    found = torch.randint(0, classes, (4, *size), dtype=torch.uint8)
    labels = torch.where(torch.rand(4, *size) < 0.8, found, 0)
    metrics = Segmentation().metrics(classes)
    start = time.perf_counter()
    for _ in range(images // 4):
        metrics.update(found, labels)
    metrics.compute()
    return time.perf_counter() - start


def write_scenes(root: Path, name: str, count: int, size: tuple[int, int]) -> None:
    """PNG files of so many pixels (height, width): scikit-learn's photographs, and masks of four classes."""
    for kind in ("images", "masks"):
        (root / name / kind).mkdir(parents=True)
    for number in range(count):
        photograph = load_sample_images().images[number % 2]
        across = (size[1], size[0])
        Image.fromarray(photograph).resize(across).save(root / name / "images" / f"{number}.png", compress_level=1)
        mask = Image.fromarray((photograph[:, :, 0] // 64).astype(np.uint8))
        mask.resize(across, Image.Resampling.NEAREST).save(root / name / "masks" / f"{number}.png", compress_level=1)


def measure_crops(quick: bool = False) -> list[Measure]:
    """Crops a second of the training loader of MaskFolders with one worker, from the cache, which the warm-up fills."""
    size, crop, files, batch, steps, rounds = (
        ((64, 128), 32, 6, 2, 2, 1) if quick else ((1024, 2048), 512, 16, 4, 10, 5)
    )
    with TemporaryDirectory() as name, patch.dict(os.environ, DAFW_CACHE=f"{name}/cache"):
        root = Path(name) / "masks"
        for domain in ("one", "two"):
            write_scenes(root, domain, files, size)
        options: dict[str, Any] = {"batch_size": batch, "steps_per_epoch": steps, "num_workers": 1}
        data = MaskFolders(
            "one", "two", root=str(root), classes=["a", "b", "c", "d"], crop=crop, augment="crop", cache=True, **options
        )
        data.setup("fit")
        run = partial(seconds_of, partial(exhaust, data.train_dataloader(), steps))
        taken = interleave({"dafw": run}, rounds, f"loader, crops of {size[1]}x{size[0]}, s")["dafw"]
    title = f"crops of {crop}x{crop} with masks from {size[1]}x{size[0]}, cached, 1 worker"
    return [timed(title, "/s", [2 * batch * steps / seconds for seconds in taken], limit=LEAST_CROPS, at_most=False)]


def measure(quick: bool = False, settings: Sequence[Setting] = ()) -> list[Measure]:
    """Time, peak of memory, passes and host reads of each method."""
    found: list[Measure] = []
    for setting in settings or ((QUICK,) if quick else (Setting(),)):
        with TemporaryDirectory() as folder:
            found += _measure(setting, Path(folder))
    images, size = (8, (64, 128)) if quick else (500, (1024, 2048))
    title = f"metrics of {images} images of {size[1]}x{size[0]}, 19 classes"
    found.append(timed(title, "s", [evaluation_time(images, size)], limit=EVALUATION))
    return [*found, *measure_crops(quick)]


def _measure(setting: Setting, folder: Path) -> list[Measure]:
    names = list(setting.only or (*METHODS, *SOURCE_FREE))
    train(setting, "SourceOnly", folder, 1)  # what others start from
    runs: dict[str, Callable[[], float]] = {name: partial(step_time, setting, name, folder) for name in names}
    if not SOURCE_FREE.keys().isdisjoint(names):
        runs["rows"] = partial(step_time, setting, "SourceOnly", folder, setting.batch)
    taken = interleave(runs, setting.rounds, f"masks, {setting.name}, ms")
    measures, peaks = [], {}
    for name in names:
        watch, weigh = StepWatch(), Weigh("cpu")
        train(setting, name, folder, 2, watch)
        train(setting, name, folder, 3, weigh)
        peaks[name] = weigh.live.peak / 1e6
        limits, where = METHODS.get(name, {}), f"{name}, {setting.name}"
        if name in SOURCE_FREE:
            limits = {"limit": SOURCE_FREE[name]}
        time_limit = {"limit": limits["limit"]} if "limit" in limits else {}
        memory_limit = {"limit": limits["memory"]} if "memory" in limits else {}
        beside = taken["rows" if name in SOURCE_FREE else "SourceOnly"]
        measures.append(timed(f"step time, {where}", "ms", taken[name], beside, **time_limit))
        measures.append(counted(f"peak of memory, {where}", "MB", peaks[name], peaks["SourceOnly"], **memory_limit))
        measures.append(counted(f"passes through the encoder, {where}", "", statistics.median(watch.passes)))
        measures.append(counted(f"host reads in a step, {where}", "", len(watch.host_reads), limit=0))
        say(f"masks: {name} {measures[-4].ratio:.2f}x the supervised step")
    return measures
