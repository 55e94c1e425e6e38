"""What each part of Lightning that dafw replaces costs in a step: one after the other is given back, in turns."""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from harness import Measure, counted, mirrored, say, timed
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy
from step import Watch

from dafw import lightning_adapter as adapter
from dafw.callbacks import Stopping
from dafw.methods import SourceOnly
from dafw.nn.distributed import leave_process_group
from dafw.testing.processes import rank_variables
from dafw.testing.server import run_fresh
from dafw.testing.steps import StepWatch
from dafw.testing.toys import ToyData, toy_network, toy_trainer

OURS = "ours"


@dataclass(frozen=True)
class Setting:
    """What is trained: source-only on a network of 360 weights, so that next to nothing but the loop is timed.

    Args:
        block: steps that are timed together.
        rounds: rounds of two blocks with each part.
    """

    block: int = 25
    rounds: int = 60


QUICK = Setting(block=3, rounds=1)
#: Of the two ranks, which wait for each other: their steps are long, and what is saved there is larger.
RANKS = Setting(block=50, rounds=8)


# ---- giving a part back, and replacing it again


def _loss(trainer: Any) -> None:
    vars(trainer.fit_loop.epoch_loop.automatic_optimization).pop("output_result_cls", None)


def _signature(trainer: Any) -> None:
    vars(trainer.fit_loop.epoch_loop).pop("_build_kwargs", None)


def _profiler(trainer: Any) -> None:
    trainer.profiler = PassThroughProfiler()


def _hook_names(_: Any) -> None:
    if "__setattr__" in vars(adapter.QuickHookNames):
        del adapter.QuickHookNames.__setattr__


def _quick_hook_names(_: Any, quick: Any = adapter.QuickHookNames.__setattr__) -> None:
    adapter.QuickHookNames.__setattr__ = quick  # type: ignore[method-assign]


def _signals(trainer: Any) -> None:
    vars(trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)


def _buffers(trainer: Any) -> None:
    trainer.strategy.model.broadcast_buffers = True


Change = Callable[[Any], None]
#: By name: what gives the part back to Lightning, and what replaces it.
PARTS: dict[str, tuple[Change, Change]] = {
    "the loss": (_loss, adapter.keep_loss_as_it_is),
    "the signature": (_signature, adapter.read_signature_once),
    "the profiler": (_profiler, adapter.profile_nothing),
    "hook names": (_hook_names, _quick_hook_names),
}
#: The same for two ranks.
RANK_PARTS: dict[str, tuple[Change, Change]] = {
    "signals": (_signals, adapter.agree_on_signals_ourselves),
    "buffers": (_buffers, adapter.leave_buffers_alone),
}


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass
class Turns(pl.Callback):
    """Gives each part back for a block of steps, in turns; ``ours`` is a block in which none is.

    Attributes:
        taken: wall and processor seconds of each part's blocks.
    """

    parts: dict[str, tuple[Change, Change]]
    setting: Setting
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [OURS, *self.parts]
        self.taken = {name: [] for name in names}
        self.order = [name for order in mirrored(names, self.setting.rounds) for name in order]
        self.started, self.now = _clock(), ""

    @property
    def steps(self) -> int:
        """All of them, with a block to warm up and a step that ends the last block."""
        return self.setting.block * (len(self.order) + 1) + 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Between two steps."""
        done, rest = divmod(batch_idx, self.setting.block)
        if rest or not done:
            return
        if self.now:
            self.taken[self.now].append(tuple(b - a for a, b in zip(self.started, _clock(), strict=True)))  # type: ignore[arg-type]
            if self.now != OURS:
                self.parts[self.now][1](trainer)
        self.now = self.order[done - 1] if done <= len(self.order) else ""
        if self.now and self.now != OURS:
            self.parts[self.now][0](trainer)
        self.started = _clock()

    def rounds(self, name: str, clock: int) -> list[float]:
        """Microseconds a step in each round, by the wall's (0) or the processor's (1) clock."""
        values = [1e6 * taken[clock] / self.setting.block for taken in self.taken[name]]
        return [(one + two) / 2 for one, two in zip(values[::2], values[1::2], strict=True)]


class OneStepEach(pl.Callback):
    """Gives each part back for one step, after two that make the optimiser's state and the ranks' buckets."""

    def __init__(self, parts: dict[str, tuple[Change, Change]]) -> None:
        self.parts = parts
        self.names = ["", "", OURS, *parts]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before each step."""
        for step, change in ((batch_idx - 1, 1), (batch_idx, 0)):
            if 0 <= step < len(self.names) and self.names[step] in self.parts:
                self.parts[self.names[step]][change](trainer)


def _train(steps: int, folder: Path, callbacks: list[pl.Callback], **options: Any) -> None:
    torch.manual_seed(0)
    data = ToyData("a", "b", batch_size=4, steps_per_epoch=steps)
    quiet = {"limit_val_batches": 0, "log_every_n_steps": 10**9}
    trainer = toy_trainer(folder, epochs=1, callbacks=[*callbacks, Stopping()], **quiet, **options)
    trainer.fit(SourceOnly(toy_network(), num_classes=3), datamodule=data)


def count(folder: Path) -> dict[str, int]:
    """ATen operations of a step with each part given back, and with none."""
    watch, turns = StepWatch(), OneStepEach(PARTS)
    _train(len(turns.names), folder, [turns, watch])
    return dict(zip(turns.names[2:], watch.operations[2:], strict=True))


# ---- two ranks


class Collectives(pl.Callback):
    """Counts broadcasts and host reads from the start of each step to the start of the next."""

    def __init__(self) -> None:
        self.watch = Watch(len(RANK_PARTS) + 3)

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Between two steps."""
        self.watch.on_train_batch_start(*arguments)

    def found(self) -> list[Counter[str]]:
        """Of each step."""
        return [
            Counter({name: n for name, n in mode.counts.items() if name.startswith("c10d::broadcast")})
            + Counter(mode.host_reads)
            for mode in self.watch.modes
        ]


def rank(where: str) -> None:
    """Takes part as one of two ranks; the first writes what it found."""
    folder = Path(where)
    setting = Setting(**json.loads((folder / "setting.json").read_text()))
    turns, single, collectives = Turns(RANK_PARTS, setting), OneStepEach(RANK_PARTS), Collectives()
    for steps, callbacks in ((len(single.names) + 1, [single, collectives]), (turns.steps, [turns])):
        _train(steps, folder, callbacks, devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
    if os.environ["RANK"] == "0":
        counts = dict(zip(single.names[2:], collectives.found()[2:], strict=True))
        times = {name: turns.rounds(name, 0) for name in turns.taken}
        (folder / "found.json").write_text(json.dumps({"counts": counts, "times": times}))
    leave_process_group()


def both_ranks(setting: Setting, folder: Path) -> dict[str, Any]:
    """What rank 0 of two found.

    Raises:
        RuntimeError: if one of them failed.
    """
    (folder / "setting.json").write_text(json.dumps(asdict(setting)))
    ended = run_fresh(f"{Path(__file__).stem}:rank", [str(folder)], variables=rank_variables())
    if any(process.code for process in ended):
        raise RuntimeError("\n".join(f"a rank ended with {process.code}: {process.err}" for process in ended))
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


# ---- all of it


def measure(quick: bool = False) -> list[Measure]:
    """Time and operations of a step with all parts replaced, the reference being the same with one given back."""
    setting = QUICK if quick else Setting()
    with TemporaryDirectory() as name:
        folder = Path(name)
        operations = count(folder)
        turns = Turns(PARTS, setting)
        _train(turns.steps, folder, [turns])
        ranks = both_ranks(setting if quick else RANKS, folder)
    found = []
    for part in PARTS:
        ours, theirs = turns.rounds(OURS, 1), turns.rounds(part, 1)
        found.append(_timed(f"{part}, processor time of a step", ours, theirs))
        found.append(counted(f"{part}, operations of a step", "", operations[OURS], operations[part]))
    for part in RANK_PARTS:
        found.append(_timed(f"{part} on two ranks, time of a step", ranks["times"][OURS], ranks["times"][part]))
        ours, theirs = (sum(ranks["counts"][name].values()) for name in (OURS, part))
        found.append(counted(f"{part} on two ranks, broadcasts and host reads of a step", "", ours, theirs))
    return found


def _timed(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Measure:
    saved = [b - a for a, b in zip(ours, theirs, strict=True)]
    say(f"parts: {name}: saves {statistics.median(saved):.1f} us ({min(saved):.1f} to {max(saved):.1f})")
    return timed(name, "µs", ours, theirs)
