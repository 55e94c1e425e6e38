"""A run to interrupt, ways to do it, and what it must equal."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commands import TOY, Outcome, fork

from dafw.testing.processes import rank_variables

#: Three epochs of four steps; a look at the terms every three.
FIT = (
    *("fit", "--model", "DANN", "--model.width", "8", *TOY, "--data.steps_per_epoch", "4"),
    *("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "3"),
)


def same(one: Path, other: Path) -> None:
    """Asserts that two run directories hold the same run, bit for bit, apart from the time and memory it took."""
    assert one.name == other.name
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        del result["seconds"], result["cost"], result["git_revision"]
        if result["stream"] is not None:
            del result["stream"]["speed"]
    assert results[0] == results[1]
    last = f"step={results[0]['steps']}.ckpt"
    finals = [torch.load(folder / "checkpoints" / last, weights_only=True) for folder in (one, other)]
    for key in ("state_dict", "optimizer_states", "dafw", "global_step", "epoch"):
        assert identical(finals[0][key], finals[1][key]), key


def identical(one: Any, other: Any) -> bool:
    """Bitwise equality of nested values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other) or (one != one and other != other)  # nan


def at_step(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """A setup for :func:`commands.fork`: ``act`` is called once, in step ``number``, after its optimiser's step."""

    def setup() -> None:
        from dafw.callbacks import StepLogger

        look = StepLogger.on_train_batch_end

        def on_train_batch_end(self: Any, trainer: Any, pl_module: Any, *rest: Any) -> None:
            look(self, trainer, pl_module, *rest)
            if pl_module.steps_done == number:
                act()

        StepLogger.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]

    return setup


def before(hook: str, act: Callable[[], None], number: int = 1) -> Callable[[], None]:
    """A setup for :func:`commands.fork`: ``act`` is called before the ``number``-th call of a function of the run."""

    def setup() -> None:
        import dafw.run.commands
        from dafw.methods import Method
        from datamodules import DomainDataModule

        homes: list[Any] = [home for home in (DomainDataModule, dafw.run.commands) if hook in vars(home)]
        owner = homes[0] if homes else Method
        function, calls = getattr(owner, hook), 0

        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return function(*arguments, **options)

        setattr(owner, hook, called)

    return setup


def die() -> None:
    """Ends this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_moment(number: int, counted: Path | None = None) -> Callable[[], None]:
    """A setup for :func:`commands.fork`: the process is killed at a moment of its run.

    Moments are the begin of each step of a training, a validation or a test; the end of each training step; half of
    each row of the log; and for each file that is written in one step: half of it, and before and after it gets its
    name.

    Args:
        number: of the moment, from 1; 0 lets the process live.
        counted: the file that gets the number of moments that there were.
    """

    def setup() -> None:
        from dafw.callbacks import StepLogger
        from dafw.methods import Method
        from dafw.run import loggers

        count, replace, append = 0, Path.replace, loggers.append

        def now() -> bool:
            nonlocal count
            count += 1
            if counted is not None:
                counted.write_text(str(count))
            return count == number

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                if now():
                    die()
                return function(*arguments, **options)

            return called

        def replace_in_moments(self: Path, target: Path) -> Path:
            if now():
                os.truncate(self, self.stat().st_size // 2)
                die()
            if now():
                die()
            replaced = replace(self, target)
            if now():
                die()
            return replaced

        def append_in_moments(path: Path, text: str, sync: bool = False) -> None:
            if now():
                append(path, text[: len(text) // 2])
                die()
            append(path, text, sync)

        for owner, hook in (
            *((Method, f"{part}_step") for part in ("training", "validation", "test")),
            (StepLogger, "on_train_batch_end"),
        ):
            setattr(owner, hook, counting(getattr(owner, hook)))
        Path.replace = replace_in_moments  # type: ignore[assignment, method-assign]
        loggers.append = append_in_moments

    return setup


def ranks(folder: Path, *arguments: object, setups: tuple[Callable[[], None], ...] = ()) -> tuple[Outcome, Outcome]:
    """Runs a command on two ranks, as torchrun starts them.

    Args:
        folder: their working directory.
        arguments: of ``dafw``.
        setups: what to call first on each rank.
    """

    def setup(rank: int) -> Callable[[], None]:
        def act() -> None:
            from pytorch_lightning.utilities import rank_zero_only

            rank_zero_only.rank = rank  # a new process reads it from its environment
            if setups:
                setups[rank]()

        return act

    started = [
        fork(folder, *arguments, setup=setup(rank), **variables) for rank, variables in enumerate(rank_variables())
    ]
    try:
        one, other = (process.wait() for process in started)
    finally:
        for process in started:
            if process.poll() is None:
                process.send(signal.SIGKILL)
    return one, other
