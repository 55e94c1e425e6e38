"""A DANN training step: dafw through Lightning's Trainer, as ``dafw fit`` runs it, beside a loop written by hand."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import finalize

import pytorch_lightning as pl
import torch
from harness import Measure, counted, mirrored, say, timed
from plain import PlainDANN
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dafw.callbacks import Checkpointing, Stopping
from dafw.methods import DANN
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.optim.fused import is_fused
from dafw.run.clock import Clock
from dafw.run.config import parse
from dafw.run.loggers import CsvLog
from dafw.testing.steps import Operations


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        backbone: the network's backbone.
        size: height and width of the images, in pixels.
        batch: source images a step, and as many target images.
        block: steps that are timed together.
        rounds: rounds of two blocks of each.
        precision: of the trainer.
        device: ``cpu`` or ``cuda``.
    """

    backbone: str
    size: int
    batch: int = 32
    block: int = 50
    rounds: int = 6
    precision: str = "32-true"
    device: str = "cpu"


SETTINGS = (
    Setting("mnist_net", 28, rounds=10),
    Setting("resnet18", 64, block=8),
    Setting("resnet50", 96, batch=8, block=4),
    Setting("tf_efficientnet_lite0", 80, batch=16, block=4),
)
QUICK = (Setting("mnist_net", 16, batch=4, block=3, rounds=1),)
LOG_EVERY = 50


@dataclass
class Pair:
    """The same training twice: by dafw, not started yet, and by hand."""

    method: DANN
    data: Any
    trainer: pl.Trainer
    plain: PlainDANN

    def fit(self) -> None:
        """Trains dafw's to the end."""
        self.trainer.fit(self.method, datamodule=self.data)


def make_pair(
    setting: Setting,
    steps: int,
    folder: Path,
    callbacks: list[pl.Callback],
    log_every: int = LOG_EVERY,
    channels_last: bool | None = False,
) -> Pair:
    """Both with the same weights; ``callbacks`` come before those of ``dafw fit``.

    ``channels_last`` is of the plain loop's network: false as people write it by hand, ``None`` as dafw's has it.
    """
    accelerator = "gpu" if setting.device == "cuda" else "cpu"
    data = f"--data Digits --data.source mnist --data.target mnistm --data.size {setting.size}"
    model = f"--model DANN --model.network.backbone {setting.backbone}"
    if setting.backbone == "mnist_net":
        model += f" --model.network.input_size {setting.size}"
    trainer = f"--trainer.max_epochs 1 --trainer.accelerator {accelerator} --trainer.devices 1"
    trainer += f" --trainer.precision {setting.precision} --trainer.limit_val_batches 0"
    trainer += f" --trainer.log_every_n_steps {log_every} --trainer.enable_progress_bar false"
    sizes = f"--data.batch_size {setting.batch} --data.steps_per_epoch {steps}"
    cli = parse(f"{model} {data} {sizes} {trainer}".split())
    method = cli.model
    assert isinstance(method, DANN)
    checkpointing = Checkpointing(folder / "checkpoints")
    own: list[pl.Callback] = [Clock(), Stopping(checkpointing), checkpointing]
    log = CsvLog(folder / "metrics.csv")
    ours = cli.make_trainer([*callbacks, *own], [log], folder)

    size = setting.size if setting.backbone == "mnist_net" else None
    network = Network(setting.backbone, input_size=size, channels_last=channels_last)
    network.set_classes(10)
    critic = mlp(network.num_features, [1024, 1024], 1)
    network.load_state_dict(method.network.state_dict())
    critic.load_state_dict(method.critic.state_dict())
    if setting.precision == "64-true":
        network, critic = network.double(), critic.double()
    again = type(cli.datamodule)("mnist", "mnistm", size=setting.size, batch_size=setting.batch, steps_per_epoch=steps)
    again.setup("fit")
    plain = PlainDANN(
        network,
        critic,
        again.train_dataloader(),
        steps=steps,
        folder=folder / "plain",
        log_every=log_every,
        save_every=checkpointing.every,
        device=setting.device,
    )
    return Pair(method, cli.datamodule, ours, plain)


# ---- the same numbers


def largest_difference(setting: Setting, steps: int, folder: Path) -> float:
    """Largest difference of any weight, running statistic or momentum after training both.

    Raises:
        AssertionError: if the two optimisers are not alike, or if dafw's is not the fused form of the other.
    """
    pair = make_pair(setting, steps, folder, [], channels_last=None)
    pair.fit()
    pair.plain.train(steps)
    (ours,), theirs = pair.trainer.optimizers, pair.plain.optimizer
    assert type(ours) is type(theirs), (ours, theirs)
    assert is_fused(ours)
    assert not is_fused(theirs)
    for key in ("momentum", "nesterov", "dampening", "weight_decay", "foreach"):
        assert {group[key] for group in ours.param_groups} == {theirs.defaults[key]}, key

    def everything(network: nn.Module, critic: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
        for module in (network, critic):
            yield from module.state_dict().values()
            yield from (optimizer.state[parameter]["momentum_buffer"] for parameter in module.parameters())

    one = everything(pair.method.network, pair.method.critic, ours)
    other = everything(pair.plain.network, pair.plain.critic, theirs)
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(one, other, strict=True))


# ---- operations


class Watch(pl.Callback):
    """Enters a new mode at the start of each step, which lasts until the next one starts.

    Args:
        steps: steps to watch.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.modes: list[Operations] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Between two steps."""
        if self.modes:
            self.modes[-1].__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if len(self.modes) < self.steps:
            self.modes.append(Operations())
            self.modes[-1].__enter__()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Counts:
    """ATen operations and host reads, views and data loading left out.

    Args:
        ordinary: operations of a step that logs nothing.
        average: mean over ``LOG_EVERY`` steps, the logging in.
        host_reads: host reads of all ``LOG_EVERY + 1`` steps but the one that logs.
        operations: the operations of an ordinary step.
        passes: passes through the backbone in a step.
    """

    ordinary: int
    average: float
    host_reads: int
    operations: Counter[str]
    passes: float


def _tensor_operations(mode: Operations) -> Counter[str]:
    return Counter({name: count for name, count in mode.counts.items() if "::" not in name})


def _count(modes: list[Operations], fetch: Operations, passes: int) -> Counts:
    loading = _tensor_operations(fetch)
    operations = [_tensor_operations(mode) - loading for mode in modes]
    ordinary = operations[LOG_EVERY // 2]
    window = operations[1 : LOG_EVERY + 1]  # the first step also makes the optimiser's state
    average = sum(found.total() for found in window) / LOG_EVERY
    quiet = [mode for step, mode in enumerate(modes, 1) if step % LOG_EVERY]
    reads = sum(len(mode.host_reads) - len(fetch.host_reads) for mode in quiet)
    return Counts(ordinary.total(), average, reads, ordinary, passes / len(modes))


class Passes:
    """Counts the calls of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        """One more."""
        self.count += 1


def count_operations(setting: Setting, folder: Path) -> tuple[Counts, Counts]:
    """What a step of dafw's and one of the plain loop do."""
    steps = LOG_EVERY + 1
    watch = Watch(steps)
    pair = make_pair(setting, steps + 1, folder, [watch])
    calls = Passes(pair.method.network.backbone), Passes(pair.plain.network.backbone)  # type: ignore[arg-type]
    pair.fit()
    modes = []
    for _ in range(steps):
        with Operations() as mode:
            pair.plain.train(1)
        modes.append(mode)
    with Operations() as fetch:
        next(pair.plain.batches)
    return _count(watch.modes, fetch, calls[0].count - 1), _count(modes, fetch, calls[1].count)


# ---- memory


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensor storages that are alive, and the most there were: parameters, state, activations, gradients.

    Args:
        device: the kind of device whose storages count.
        existing: modules that are there already.
    """

    def __init__(self, device: str, *existing: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for module in existing:
            self.add([*module.parameters(), *module.buffers()])

    def add(self, values: Any) -> None:
        """Counts the storages of all tensors in ``values`` until they die."""
        for value in tree_iter(values):
            if isinstance(value, Tensor) and value.device.type == self.device:
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += self.sizes[key]
                    finalize(storage, self._dead, key)
        self.peak = max(self.peak, self.now)

    def _dead(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what comes out."""
        found = func(*args, **(kwargs or {}))
        self.add(found)
        return found


class Weigh(pl.Callback):
    """Watches the memory from the start of training to its last step.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts with what the method holds."""
        self.live = LiveBytes(self.device, pl_module)
        self.live.__enter__()  # type: ignore[no-untyped-call]

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stops."""
        self.live.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def peak_bytes(setting: Setting, folder: Path) -> tuple[int, int]:
    """The most bytes of tensors alive in dafw's training and in the plain loop's, over steps with two looks."""
    weigh, steps, log_every = Weigh(setting.device), 22, 10
    pair = make_pair(setting, steps, folder, [weigh], log_every)
    pair.fit()
    with LiveBytes(setting.device, pair.plain.network, pair.plain.critic) as live:
        pair.plain.train(steps)
    return weigh.live.peak, live.peak


# ---- time


class Alternate(pl.Callback):
    """Times blocks of steps of the trainer, and between them blocks of the plain loop, in mirrored order.

    A block of the trainer lasts from the start of a step to the start of another one, ``block`` steps later: it holds
    all that the trainer does in between.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.plain: PlainDANN | None = None
        self.order = [name for order in mirrored(["dafw", "plain"], setting.rounds) for name in order]
        self.taken: dict[str, list[tuple[float, float]]] = {"dafw": [], "plain": []}
        self.started: tuple[float, float] | None = None

    @property
    def steps(self) -> int:
        """Steps to plan: a block to warm up, the timed ones, and one more to end the last block."""
        return (1 + 2 * self.setting.rounds) * self.setting.block + 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Between two steps."""
        if batch_idx % self.setting.block:
            return
        assert self.plain is not None
        if self.started is not None:
            self._stop("dafw")
        if batch_idx == 0:
            self.plain.train(self.setting.block)
            return
        while self.order and self.order[0] == "plain":
            self._start()
            self.plain.train(self.setting.block)
            self._stop(self.order.pop(0))
        if self.order:
            self.order.pop(0)
            self._start()

    def _clock(self) -> tuple[float, float]:
        if self.setting.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def _start(self) -> None:
        self.started = self._clock()

    def _stop(self, name: str) -> None:
        assert self.started is not None
        wall, processor = (now - then for now, then in zip(self._clock(), self.started, strict=True))
        self.started = None
        self.taken[name].append((wall, processor))
        if all(len(values) == len(self.taken["dafw"]) and len(values) % 2 == 0 for values in self.taken.values()):
            self._report()

    def _report(self) -> None:
        done = len(self.taken["dafw"]) // 2
        last = ", ".join(f"{n} {1e3 * self.per_step(n, 0)[-1]:.2f} ms" for n in self.taken)
        say(f"step, {self.setting.backbone}: round {done} of {self.setting.rounds}, {last}")

    def per_step(self, name: str, clock: int) -> list[float]:
        """Seconds a step in each round, by the wall's (0) or the processor's (1) clock."""
        blocks = [taken[clock] for taken in self.taken[name]]
        return [(one + two) / (2 * self.setting.block) for one, two in zip(blocks[::2], blocks[1::2], strict=True)]


def time_steps(setting: Setting, folder: Path) -> Alternate:
    """Blocks of both in turns, within one process."""
    alternate = Alternate(setting)
    pair = make_pair(setting, alternate.steps, folder, [alternate])
    alternate.plain = pair.plain
    pair.fit()
    return alternate


# ---- all of it


def measure(quick: bool = False, device: str = "cpu") -> list[Measure]:
    """Every measure of the step.

    Raises:
        AssertionError: if dafw and the plain loop do not train the same weights.
    """
    measures: list[Measure] = []
    for setting in (replace(item, device=device) for item in (QUICK if quick else SETTINGS)):
        with TemporaryDirectory() as name:
            measures += _measure(setting, Path(name), quick)
    return measures


def _measure(setting: Setting, folder: Path, quick: bool) -> list[Measure]:
    where = f"{setting.backbone}, {setting.size} px, batch {setting.batch} + {setting.batch}"
    small = replace(setting, size=min(setting.size, 32), batch=4)
    exact = replace(small, precision="64-true")
    difference = largest_difference(exact, 3 if quick else 12, folder / "same")
    say(f"step, {setting.backbone}: largest difference from the plain loop {difference:.1e} in float64")
    assert difference <= 1e-12, f"dafw and the plain loop differ by {difference} on {where}"
    ours, theirs = count_operations(small, folder / "operations")
    extra = ", ".join(f"{n} {c:+d}" for n, c in sorted(_less(ours.operations, theirs.operations).items()))
    say(f"step, {setting.backbone}: {ours.ordinary} operations, {theirs.ordinary} by hand ({extra or 'the same ones'})")
    peaks = peak_bytes(setting, folder / "memory")
    taken = time_steps(setting, folder / "time")
    milliseconds = [[[1e3 * s for s in taken.per_step(n, c)] for n in ("dafw", "plain")] for c in (0, 1)]
    return [
        timed(f"step time, {where}", "ms", *milliseconds[0], limit=1.05),
        timed(f"step time by the processor's clock, {where}", "ms", *milliseconds[1]),
        counted(f"operations of a step, {setting.backbone}", "", ours.ordinary, theirs.ordinary, limit=1.02),
        counted(
            f"operations of a step, mean of {LOG_EVERY} with logging, {setting.backbone}",
            "",
            ours.average,
            theirs.average,
            limit=1.02,
        ),
        counted(f"host reads of {LOG_EVERY} steps that log nothing, {setting.backbone}", "", ours.host_reads, limit=0),
        counted(f"passes through the backbone in a step, {setting.backbone}", "", ours.passes, limit=1),
        counted(f"peak bytes of tensors, {where}", "MB", *(peak / 1e6 for peak in peaks), limit=1.05),
    ]


def _less(one: Counter[str], other: Counter[str]) -> dict[str, int]:
    return {name: one[name] - other[name] for name in one.keys() | other.keys() if one[name] != other[name]}
