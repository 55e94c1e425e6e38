"""A training step of the methods for masks beside the supervised step of as many images: time, memory, passes, reads.

The supervised step is SourceOnly's with as many labelled images as the method has images of source and target together.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import Measure, counted, interleave, say, timed
from methods import Timed
from step import Weigh

import dafw.methods
from dafw.data import Domain
from dafw.data.roles import Split
from dafw.nn.segmentation import SegmentationNetwork
from dafw.problems import Segmentation
from dafw.testing.steps import StepWatch
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule

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


QUICK = Setting("tiny_unet", None, 32, batch=2, steps=2, rounds=1, only=("SourceOnly", "DANN"))
WARMUP = 2


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
        """Sixteen images."""
        rng = np.random.default_rng([len(name), len(split)])
        images = rng.integers(0, 256, (16, 3, self.size, self.size), dtype=np.uint8)
        masks = rng.integers(0, 4, (16, self.size, self.size), dtype=np.uint8)
        return Domain(name, list(torch.from_numpy(images)), list(torch.from_numpy(masks)))


def train(setting: Setting, name: str, folder: Path, steps: int, *watches: Any) -> None:
    """Some steps of one method from its first ones on, without validation."""
    owner = getattr(dafw.methods, name)
    rows = 2 * setting.batch if name == "SourceOnly" else setting.batch
    torch.manual_seed(0)
    network = SegmentationNetwork(setting.arch, setting.encoder, auxiliary=name == "AdaptSegNet")
    method = owner(network, num_classes=4, problem=Segmentation())
    data = Scenes(setting.size, batch_size=rows, steps_per_epoch=steps)
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 1000}
    toy_trainer(folder, epochs=1, callbacks=list(watches), **options).fit(method, datamodule=data)


def step_time(setting: Setting, name: str, folder: Path) -> float:
    """Milliseconds a step."""
    clock = Timed(WARMUP, WARMUP + setting.steps)
    train(setting, name, folder, WARMUP + setting.steps + 1, clock)
    return 1e3 * clock.per_step


def measure(quick: bool = False, settings: Sequence[Setting] = ()) -> list[Measure]:
    """Time, peak of memory, passes and host reads of each method."""
    found: list[Measure] = []
    for setting in settings or ((QUICK,) if quick else (Setting(),)):
        with TemporaryDirectory() as folder:
            found += _measure(setting, Path(folder))
    return found


def _measure(setting: Setting, folder: Path) -> list[Measure]:
    names = [name for name in setting.only or METHODS if hasattr(dafw.methods, name)]
    runs: dict[str, Callable[[], float]] = {name: partial(step_time, setting, name, folder) for name in names}
    taken = interleave(runs, setting.rounds, f"masks, {setting.name}, ms")
    measures, peaks = [], {}
    for name in names:
        watch, weigh = StepWatch(), Weigh("cpu")
        train(setting, name, folder, 2, watch)
        train(setting, name, folder, 3, weigh)
        peaks[name] = weigh.live.peak / 1e6
        limits, where = METHODS.get(name, {}), f"{name}, {setting.name}"
        time_limit = {"limit": limits["limit"]} if "limit" in limits else {}
        memory_limit = {"limit": limits["memory"]} if "memory" in limits else {}
        measures.append(timed(f"step time, {where}", "ms", taken[name], taken["SourceOnly"], **time_limit))
        measures.append(counted(f"peak of memory, {where}", "MB", peaks[name], peaks["SourceOnly"], **memory_limit))
        measures.append(counted(f"passes through the encoder, {where}", "", statistics.median(watch.passes)))
        measures.append(counted(f"host reads in a step, {where}", "", len(watch.host_reads), limit=0))
        say(f"masks: {name} {measures[-4].ratio:.2f}x the supervised step")
    return measures
