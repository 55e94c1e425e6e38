"""A training step of every method beside DANN's on the same network: time, operations, passes, host reads.

ParetoDA and its kin on a larger network too.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from harness import Measure, counted, interleave, say, timed

import dafw.methods
from dafw.commands.listing import methods as listed
from dafw.run.config import parse
from dafw.testing.steps import StepWatch

#: The network of a method that needs more than convolutions; the others share the DANN paper's.
NETWORKS = {"AdaBN": "small_bn_net", "DCAN": "small_se_net", "GDCAN": "small_se_net"}
#: Methods with an argument that decides what a step costs.
VARIANTS = {"ParetoDA, last": ("ParetoDA", "--model.weigh_by last")}
#: What a method's step may take on any network, as a multiple of DANN's.
LIMITS = {"ParetoDA": 2.2, "ParetoDA, last": 2.2}
#: As in the paper's digit experiments, so that the critic does not outweigh the network.
CRITICS = ("DANN", "CDAN", "ParetoDA", "ParetoCDAN", "SDAT", "ADDA")


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        size: height and width of the digits, in pixels.
        batch: source images a step, and as many target images.
        steps: timed steps of a run.
        warmup: steps before them.
        rounds: rounds of two runs of each method.
        only: names of methods, or of variants; all of them if empty.
        backbone: of all of them; each method's own if empty.
    """

    size: int = 28
    batch: int = 32
    steps: int = 30
    warmup: int = 5
    rounds: int = 3
    only: tuple[str, ...] = ()
    backbone: str = ""


#: DANN and what copies and combines gradients.
PARETO = ("DANN", "ParetoDA", *VARIANTS, "ParetoCDAN", "ParetoMDD")
#: A network of many parameters, for methods that combine gradients at all of them.
LARGE = Setting(64, steps=5, warmup=2, only=PARETO, backbone="resnet18")
QUICK = Setting(size=16, batch=4, steps=2, warmup=1, rounds=1, only=("DANN", "DeepCORAL"))
QUICK_LARGE = replace(QUICK, only=PARETO[:3], backbone=LARGE.backbone)


def comparable() -> list[str]:
    """The methods whose steps can be set beside DANN's.

    Left out are those for masks or boxes alone, and those of a test stream, which ends with the test split.
    """
    kinds = {name: getattr(dafw.methods, name).kinds for name in listed()}
    of_classes = [name for name, own in kinds.items() if not own or "classification" in own]
    return [name for name in of_classes if not listed()[name].startswith("[test-time]")]


class Timed(pl.Callback):
    """Seconds from the start of one step to the start of another.

    Args:
        first: the step at whose start the clock starts.
        last: the one at whose start it stops.
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.seconds = first, last, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts or stops."""
        if batch_idx == self.first:
            self.seconds = -time.perf_counter()
        elif batch_idx == self.last:
            self.seconds += time.perf_counter()

    @property
    def per_step(self) -> float:
        """Seconds a step."""
        return self.seconds / (self.last - self.first)


def train(
    setting: Setting, method: str, backbone: str, folder: Path, checkpoint: Path, watch: pl.Callback
) -> pl.Trainer:
    """Some steps of one method from its first ones on, without validation."""
    method, argument = VARIANTS.get(method, (method, ""))
    data = f"--data Digits --data.source mnist --data.target mnistm --data.size {setting.size}"
    data += f" --data.batch_size {setting.batch} --data.steps_per_epoch {setting.warmup + setting.steps + 1}"
    model = f"--model {method} {argument} --model.network.backbone {backbone} --model.network.input_size {setting.size}"
    if method in CRITICS:
        model += " --model.width 100 --model.depth 1"
    if method.startswith("Pareto"):
        model += " --model.class_width 100"
    if listed()[method].startswith("[source-free]"):
        model += f" --model.checkpoint {checkpoint}"
    trainer = "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.devices 1 --trainer.limit_val_batches 0"
    trainer += " --trainer.log_every_n_steps 1000 --trainer.enable_progress_bar false"
    cli = parse(f"{model} {data} {trainer} --run.wandb disabled".split())
    made = cli.make_trainer([watch], [], folder)
    made.fit(cli.model, datamodule=cli.datamodule)
    return made


def step_time(*arguments: Any) -> float:
    """Milliseconds a step."""
    setting: Setting = arguments[0]
    clock = Timed(setting.warmup, setting.warmup + setting.steps)
    train(*arguments, clock)
    return 1e3 * clock.per_step


def measure(quick: bool = False, settings: Sequence[Setting] = ()) -> list[Measure]:
    """Time, operations, passes and host reads of each method, DANN's on the same network being the reference."""
    found: list[Measure] = []
    for setting in settings or ((QUICK, QUICK_LARGE) if quick else (Setting(), LARGE)):
        names = setting.only or (*comparable(), *VARIANTS)
        networks = {name: setting.backbone or NETWORKS.get(name, "mnist_net") for name in names}
        for network in dict.fromkeys(networks.values()):
            with TemporaryDirectory() as folder:
                here = [name for name in names if networks[name] == network]
                found += _measure(setting, ["DANN", *(name for name in here if name != "DANN")], network, Path(folder))
    return found


def _measure(setting: Setting, names: list[str], network: str, folder: Path) -> list[Measure]:
    watches = {name: StepWatch() for name in ("SourceOnly", *names)}
    arguments = {name: (setting, name, network, folder, folder / "source.ckpt") for name in watches}
    for name, watch in watches.items():
        trainer = train(*arguments[name], watch)
        if name == "SourceOnly":  # the source-free methods start from it
            trainer.save_checkpoint(folder / "source.ckpt")
    operations = {name: statistics.median(watches[name].operations) for name in names}
    runs: dict[str, Callable[[], float]] = {name: partial(step_time, *arguments[name]) for name in names}
    taken = interleave(runs, setting.rounds, f"methods, {network}, ms")
    measures = []
    for name in names:
        watch, where = watches[name], f"{name}, {network}"
        limit = {"limit": LIMITS[name]} if name in LIMITS else {}
        measures.append(timed(f"step time, {where}", "ms", taken[name], taken["DANN"], **limit))
        measures.append(counted(f"operations of a step, {where}", "", operations[name], operations["DANN"]))
        measures.append(counted(f"passes through the backbone in a step, {where}", "", statistics.median(watch.passes)))
        measures.append(counted(f"host reads in a step, {where}", "", len(watch.host_reads) / len(watch.passes)))
        say(f"methods: {name} {measures[-4].ratio:.2f}x DANN on {network}")
    return measures


def table(measures: list[Measure]) -> str:
    """One line for each method and network."""
    lines = ["| method | network | step | of DANN's (range) | operations | of DANN's | backbone passes | host reads |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for clock, operations, passes, reads in zip(*(iter(measures),) * 4, strict=True):
        name, network = clock.name.removeprefix("step time, ").rsplit(", ", 1)
        spread = f" ({clock.lowest:.2f} to {clock.highest:.2f})" if clock.rounds > 1 else ""
        verdict = "" if clock.holds is None else f", limit {clock.limit:g}: {'holds' if clock.holds else '**missed**'}"
        ratio = "" if name == "DANN" else f"{clock.ratio:.2f}{spread}{verdict}"
        times = "" if name == "DANN" else f"{operations.ratio:.2f}"
        cells = (name, network, f"{clock.dafw:.1f} ms", ratio, f"{operations.dafw:g}", times)
        lines.append("| " + " | ".join((*cells, f"{passes.dafw:g}", f"{reads.dafw:g}")) + " |")
    return "\n".join(lines)
