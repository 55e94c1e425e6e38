"""A training step of detectors: beside torchvision's own model, and of the methods beside supervised steps.

Torchvision's model is made of the same parts and trained by a plain loop on batches that are ready. The supervised
steps are SourceOnly's: with as many labelled images as a method has of the source, and with as many as it has of
source and target together. Methods of generalisation stand beside ERM.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from box_loader import measure_boxes
from harness import Measure, counted, interleave, timed
from methods import Timed
from step import LiveBytes, Weigh
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

import dafw.methods
from dafw.data import Domain
from dafw.data.roles import Split
from dafw.nn.detector import Detector
from dafw.problems import Detection
from dafw.testing.steps import StepWatch
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule

#: What a step of a method may take as a multiple of the supervised step of its source images (``source``), of that of
#: as many images as it has (``rows``), of ERM's (``erm``), and of another method's (by its name); and its memory of
#: that of as many images (``memory``).
METHODS: dict[str, dict[str, float]] = {
    "DANN": {},
    "DAFasterRCNN": {"source": 2.1},
    "MeanTeacher": {"source": 2.2, "rows": 1.4, "memory": 1.2},
    "MeanTeacher with soft labels": {"MeanTeacher": 1.15},
    "NSA": {"source": 4.0},
    "DomainPenalisation": {"erm": 1.05},
}
#: Regions of an image that a detector's losses draw, and that a method compares or shows to a critic.
REGIONS = 64
#: By the name of a row its method and its arguments: a teacher teaches from the first step on, and all parts are there.
ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DAFasterRCNN": ("DAFasterRCNN", {"regions": REGIONS}),
    "NSA": (
        "NSA",
        {
            **{"position_weight": 0.06, "threshold": 0.05, "border": 0, "regions": REGIONS},
            **{"texture_weights": [1.0, 1.0, 1.0], "largest": 1.0},
        },
    ),
    "MeanTeacher": ("MeanTeacher", {"burn_in": 0.0, "threshold": 0.05}),
    "MeanTeacher with soft labels": (
        "MeanTeacher",
        {"burn_in": 0.0, "threshold": 0.05, "labels": "soft", "regions": REGIONS},
    ),
}
#: What our supervised step may take as a multiple of torchvision's.
OVER_TORCHVISION = 1.03
#: Seconds that measuring 1,000 images may take beyond finding their boxes.
EVALUATION = 3.0
WARMUP, CLASSES = 2, ("disk", "square", "triangle")


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        arch: of the detector.
        backbone: of the detector.
        size: height and width of the images, in pixels.
        batch: source images a step, and as many target images.
        steps: timed steps of a run.
        rounds: rounds of two runs of each contender.
        only: names of methods; all that there are if empty.
        images: how many images the evaluation has.
    """

    arch: str = "fasterrcnn"
    backbone: str = "tf_efficientnet_lite0"
    size: int = 128
    batch: int = 4
    steps: int = 3
    rounds: int = 2
    only: tuple[str, ...] = ()
    images: int = 1000

    @property
    def name(self) -> str:
        """The network and the images."""
        return f"{self.arch} {self.backbone}, {self.size} px, {self.batch} + {self.batch}"

    def network(self) -> Detector:
        """The same network each time.

        On 512 regions of an image a step takes seconds, most of them in the layers of the regions. So few are drawn,
        and few proposals kept, as in the tables of boxes.
        """
        torch.manual_seed(0)
        names = ("anchors_per_image", "regions_per_image", "proposals_in_training", "proposals_in_test")
        drawn = dict.fromkeys(names, REGIONS)
        network = Detector(self.arch, self.backbone, mean=[0.5], std=[0.5], **drawn)  # type: ignore[arg-type]
        network.set_classes(len(CLASSES))
        return network


SETTINGS = (Setting(), Setting("fcos"), Setting("retinanet", only=("SourceOnly",)))
QUICK = Setting(backbone="tiny", size=32, batch=2, steps=2, rounds=1, images=10)


class Scenes(DomainDataModule):
    """Random images with boxes of three classes, in memory.

    Args:
        size: height and width, in pixels.
        source: names of the labelled domains.
        base: see :class:`~datamodules.base.DomainDataModule`.
    """

    domain_names = ("day", "dusk", "night")
    class_names = CLASSES

    def __init__(self, size: int, source: Sequence[str] = ("day",), **base: Any) -> None:
        super().__init__(list(source), "night", **base)
        self.size = size

    def load(self, name: str, split: Split) -> Domain:
        """Sixteen images with three boxes each."""
        rng = np.random.default_rng([len(name), len(split)])
        images = rng.integers(0, 256, (16, 3, self.size, self.size), dtype=np.uint8)
        return Domain(name, list(torch.from_numpy(images)), [some_boxes(rng, self.size, 3) for _ in images])

    def view(self, name: str) -> Callable[[Any], Any]:
        """The image itself: what a view costs is the loader's."""
        return v2.Identity()


def some_boxes(rng: np.random.Generator, size: int, count: int) -> dict[str, Tensor]:
    """Boxes of a quarter to a half of the image's side, and classes."""
    corners, sides = rng.uniform(0, size / 2, (count, 2)), rng.uniform(size / 4, size / 2, (count, 2))
    boxes = torch.tensor(np.concatenate([corners, corners + sides], 1), dtype=torch.float32)
    return {"boxes": boxes, "labels": torch.from_numpy(rng.integers(0, len(CLASSES), count))}


def train(setting: Setting, name: str, rows: int, folder: Path, steps: int, *watches: Any) -> None:
    """Some steps of one method from its first ones on, without validation."""
    chosen, arguments = ARGUMENTS.get(name, (name, {}))
    owner = getattr(dafw.methods, chosen)
    sources = ("day",) if owner.setting.sees_target else ("day", "dusk")
    given = {"num_sources": len(sources)} if "num_sources" in signature(owner.__init__).parameters else {}
    method = owner(setting.network(), num_classes=len(CLASSES), problem=Detection(), **given, **arguments)
    data = Scenes(setting.size, sources, batch_size=rows, steps_per_epoch=steps)
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 1000}
    toy_trainer(folder, epochs=1, callbacks=list(watches), **options).fit(method, datamodule=data)


def step_time(setting: Setting, name: str, rows: int, folder: Path) -> float:
    """Milliseconds a step."""
    clock = Timed(WARMUP, WARMUP + setting.steps)
    train(setting, name, rows, folder, WARMUP + setting.steps + 1, clock)
    return 1e3 * clock.per_step


def torchvisions(setting: Setting) -> Any:
    """Torchvision's model, made of the parts of ours; images have the size that its transform asks for."""
    network = setting.network()
    head: Any = network.head
    sides = (setting.size, setting.size)
    transform = GeneralizedRCNNTransform(*sides, [0.5] * 3, [0.5] * 3, size_divisible=network.multiple)
    if setting.arch == "fasterrcnn":
        return GeneralizedRCNN(network.backbone, head.rpn, head.roi_heads, transform)
    own, owner = head.model, {"fcos": FCOS, "retinanet": RetinaNet}[setting.arch]
    model = owner(network.backbone, len(CLASSES), anchor_generator=own.anchor_generator, head=own.head)
    model.transform = transform
    return model


def torchvisions_steps(setting: Setting, rows: int, steps: int) -> float:
    """Milliseconds a step of a plain loop."""
    model, data = torchvisions(setting), Scenes(setting.size)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-3)
    domain: Any = data.load("day", "train")
    first = int(setting.arch == "fasterrcnn")  # where 0 is the background
    targets = [{**label, "labels": label["labels"] + first} for label in domain.labels]
    start = 0.0
    for step in range(WARMUP + steps):
        if step == WARMUP:
            start = time.perf_counter()
        chosen = [(step * rows + row) % len(targets) for row in range(rows)]
        images = [domain.inputs[place].float() / 255 for place in chosen]
        losses = model(images, [targets[place] for place in chosen])
        optimizer.zero_grad()
        sum(loss for name, loss in losses.items() if name != "count").backward()
        optimizer.step()
    return 1e3 * (time.perf_counter() - start) / steps


def evaluation_time(images: int) -> float:
    """Seconds that the metrics take of images with 20 boxes and 100 detections each."""
    rng, problem = np.random.default_rng(0), Detection()
    labels = [some_boxes(rng, 640, 20) for _ in range(images)]
    found = [{**some_boxes(rng, 640, 100), "scores": torch.from_numpy(rng.random(100))} for _ in range(images)]
    metrics = problem.metrics(len(CLASSES))
    start = time.perf_counter()
    for first in range(0, images, 50):
        metrics.update(found[first : first + 50], labels[first : first + 50])
    problem.values(metrics, CLASSES)
    return time.perf_counter() - start


def measure(quick: bool = False, settings: Sequence[Setting] = ()) -> list[Measure]:
    """Time, peak of memory, passes and host reads of each detector and method; evaluating, and loading images."""
    found: list[Measure] = []
    chosen = settings or ((QUICK,) if quick else SETTINGS)
    for setting in chosen:
        with TemporaryDirectory() as folder:
            found += _measure(setting, Path(folder))
    images = chosen[0].images
    found.append(timed(f"metrics of {images} images", "s", [evaluation_time(images)], limit=EVALUATION))
    return found + measure_boxes(quick)


def _measure(setting: Setting, folder: Path) -> list[Measure]:
    batch = setting.batch
    there = [name for name in METHODS if hasattr(dafw.methods, ARGUMENTS.get(name, (name, {}))[0])]
    names = [name for name in there if name in (setting.only or METHODS)]
    runs: dict[str, Callable[[], float]] = {
        "torchvision": partial(torchvisions_steps, setting, batch, setting.steps),
        "source": partial(step_time, setting, "SourceOnly", batch, folder),
        "rows": partial(step_time, setting, "SourceOnly", 2 * batch, folder),
    }
    if any("erm" in METHODS[name] for name in names):
        runs["erm"] = partial(step_time, setting, "ERM", batch, folder)
    runs |= {name: partial(step_time, setting, name, batch, folder) for name in names}
    taken = interleave(runs, setting.rounds, f"boxes, {setting.name}, ms")
    where = f"SourceOnly, {setting.name}"
    measures = [
        timed(
            f"step time over torchvision, {where}", "ms", taken["source"], taken["torchvision"], limit=OVER_TORCHVISION
        )
    ]
    measures += counts(setting, "SourceOnly", batch, folder, where)
    with LiveBytes("cpu") as live:
        torchvisions_steps(setting, batch, 1)
    weighed = {rows: peak(setting, "SourceOnly", rows, folder) for rows in (batch, 2 * batch)}
    measures.append(counted(f"peak of memory over torchvision, {where}", "MB", weighed[batch], live.peak / 1e6))
    for name in names:
        where, limits = f"{name}, {setting.name}", METHODS[name]
        others = [other for other in limits if other == "erm" or other in names]
        references = others or ["source", "rows"]
        for reference in references:
            limit = {"limit": limits[reference]} if reference in limits else {}
            measures.append(timed(f"step time over {reference}, {where}", "ms", taken[name], taken[reference], **limit))
        limit = {"limit": limits["memory"]} if "memory" in limits else {}
        own = peak(setting, name, batch, folder)
        measures.append(counted(f"peak of memory over rows, {where}", "MB", own, weighed[2 * batch], **limit))
        measures += counts(setting, name, batch, folder, where)
    return measures


def peak(setting: Setting, name: str, rows: int, folder: Path) -> float:
    """The most megabytes of tensors that are alive at one time."""
    weigh = Weigh("cpu")
    train(setting, name, rows, folder, 3, weigh)
    return weigh.live.peak / 1e6


def counts(setting: Setting, name: str, rows: int, folder: Path, where: str) -> list[Measure]:
    """Passes through the backbone and host reads of a step; those of samplers and of suppression apart."""
    watch = StepWatch()
    train(setting, name, rows, folder, 2, watch)
    needed = len(watch.needed_reads) / len(watch.passes)
    listed = ", ".join(sorted(set(watch.needed_reads)))
    return [
        counted(f"passes through the backbone, {where}", "", statistics.median(watch.passes)),
        counted(f"host reads of samplers and suppression in a step ({listed}), {where}", "", needed),
        counted(f"other host reads in a step, {where}", "", len(watch.host_reads), limit=0),
    ]
