"""A step of each test-time method on a stream, beside the frozen model's on the same stream: time and memory.

Every image counts in the step: margins are wide and thresholds low, so that no method saves a backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import Measure, counted, interleave, timed
from methods import Timed
from step import Weigh

import dafw.methods
from dafw.data import ArrayImages, Domain
from dafw.data.roles import Split
from dafw.nn.network import Network
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule

#: By the name of a row its method and its arguments. An entropy's margin is a share of log K, a similarity's at most 1.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Frozen": ("Frozen", {}),
    "BN-1": ("BatchNormAdapt", {}),
    "BN-EMA": ("BatchNormAdapt", {"statistics": "average"}),
    "alpha-BN": ("BatchNormAdapt", {"statistics": "mixed"}),
    "Tent": ("Tent", {}),
    "ETA": ("ETA", {"margin": 2.0, "redundancy": 2.0}),
    "EATA": ("EATA", {"margin": 2.0, "redundancy": 2.0, "fisher_samples": 8, "fisher_batch": 8}),
    "RDumb": ("RDumb", {"margin": 2.0, "redundancy": 2.0}),
    "SAR": ("SAR", {"margin": 2.0, "recover_below": 0.0}),
    "DeYO": ("DeYO", {"margin": 2.0, "weight_margin": 2.0, "threshold": -1.0}),
    "CAFA": ("CAFA", {}),
    "Core": ("Core", {}),
    "CoTTA, 32 views": ("CoTTA", {"threshold": 1.0}),
    "CoTTA, 4 views": ("CoTTA", {"threshold": 1.0, "views": 4}),
    "RMT": ("RMT", {}),
    "RMT with replay": ("RMT", {"source_weight": 1.0}),
    "ROID": ("ROID", {}),
    "RoTTA": ("RoTTA", {}),
    "SHOTOnline": ("SHOTOnline", {"confidence": 0.0}),
    "LAME": ("LAME", {}),
    "T3A": ("T3A", {}),
    "AdaNPC": ("AdaNPC", {"threshold": 0.0}),
    "AdaNPCBN": ("AdaNPCBN", {"threshold": 0.0}),
}
CLASSES = tuple("abcdefghij")


@dataclass(frozen=True)
class Setting:
    """What is streamed.

    Args:
        backbone: of the network.
        size: height and width of the images, in pixels.
        batch: images of a step.
        steps: timed steps of a run.
        warmup: steps before them.
        rounds: rounds of two runs of each row.
        only: names of rows beside the frozen model; all of them if empty.
    """

    backbone: str = "resnet18"
    size: int = 64
    batch: int = 32
    steps: int = 4
    warmup: int = 1
    rounds: int = 3
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The network and the images."""
        return f"{self.backbone}, {self.size} px, batch {self.batch}"


QUICK = Setting("small_bn_net", 16, 4, steps=1, rounds=1, only=("BN-1", "Tent", "CoTTA, 4 views"))


class Images(DomainDataModule):
    """Random images of ten classes, in memory: one labelled domain, and one that is streamed.

    Args:
        setting: gives their size and how many steps there are.
    """

    domain_names = ("day", "night")
    class_names = CLASSES

    def __init__(self, setting: Setting) -> None:
        super().__init__("day", "night", batch_size=setting.batch, target_batch_size=setting.batch, steps_per_epoch=1)
        self.size, self.count = setting.size, setting.batch * (setting.warmup + setting.steps + 1)

    def load(self, name: str, split: Split) -> Domain:
        """As many images as the stream has."""
        rng = np.random.default_rng([len(name), len(split)])
        images = rng.integers(0, 256, (self.count, self.size, self.size, 3), dtype=np.uint8)
        return Domain(name, ArrayImages(images), np.arange(self.count) % len(CLASSES))


def start(setting: Setting, path: Path) -> None:
    """Writes the checkpoint that all rows start from: after a step on the labelled domain."""
    trainer = toy_trainer(path.parent, epochs=1, limit_val_batches=0)
    trainer.fit(dafw.methods.SourceOnly(_network(setting), num_classes=len(CLASSES)), datamodule=Images(setting))
    trainer.save_checkpoint(path)


def _network(setting: Setting) -> Network:
    torch.manual_seed(0)
    return Network(setting.backbone, input_size=setting.size)


def serve(setting: Setting, name: str, checkpoint: Path, *watches: Any) -> None:
    """The stream, by one method from its start on."""
    chosen, arguments = ROWS[name]
    given = {"num_classes": len(CLASSES), "checkpoint": str(checkpoint), **arguments}
    method = getattr(dafw.methods, chosen)(_network(setting), **given)
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 1000}
    toy_trainer(checkpoint.parent, epochs=1, callbacks=list(watches), **options).fit(method, datamodule=Images(setting))


def rate(setting: Setting, name: str, checkpoint: Path) -> float:
    """Milliseconds an image."""
    clock = Timed(setting.warmup, setting.warmup + setting.steps)
    serve(setting, name, checkpoint, clock)
    return 1e3 * clock.per_step / setting.batch


def measure(quick: bool = False, setting: Setting | None = None) -> list[Measure]:
    """Time of an image and peak of memory of each row; those of the frozen model are the reference."""
    setting = setting or (QUICK if quick else Setting())
    names = ["Frozen", *(setting.only or [name for name in ROWS if name != "Frozen"])]
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder, "start.ckpt")
        start(setting, checkpoint)
        runs: dict[str, Callable[[], float]] = {name: partial(rate, setting, name, checkpoint) for name in names}
        taken = interleave(runs, setting.rounds, f"streams, {setting.name}, ms an image")
        peaks = {name: peak(setting, name, checkpoint) for name in names}
    found = []
    for name in names:
        found.append(timed(f"time of an image, {name}, {setting.name}", "ms", taken[name], taken["Frozen"]))
        found.append(counted(f"peak of memory, {name}, {setting.name}", "MB", peaks[name], peaks["Frozen"]))
    return found


def peak(setting: Setting, name: str, checkpoint: Path) -> float:
    """The most megabytes of tensors that are alive at one time."""
    weigh = Weigh("cpu")
    serve(setting, name, checkpoint, weigh)
    return weigh.live.peak / 1e6


def table(measures: list[Measure]) -> str:
    """One line for each row."""
    lines = ["| method | images/s | time of the frozen model's (range) | peak of memory | of the frozen model's |"]
    lines.append("|---|---:|---:|---:|---:|")
    for clock, memory in zip(*(iter(measures),) * 2, strict=True):
        name = clock.name.removeprefix("time of an image, ").rsplit(", ", 3)[0]
        spread = f" ({clock.lowest:.2f} to {clock.highest:.2f})" if clock.rounds > 1 else ""
        cells = (name, f"{1e3 / clock.dafw:.0f}", f"{clock.ratio:.2f}{spread}", f"{memory.dafw:.0f} MB")
        lines.append("| " + " | ".join((*cells, f"{memory.ratio:.2f}")) + " |")
    return "\n".join(lines)
