"""A cell of a table in a warm process: what it takes beyond its training and its evaluation."""

import contextlib
import gc
import io
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from harness import Measure, mirrored, say, timed

from dafw.run.entry import execute
from dafw.run.result import read_result

LIMIT = 1.0


@dataclass(frozen=True)
class Setting:
    """What is run.

    Args:
        model: the method, as in a configuration file.
        data: the datamodule, likewise.
        rounds: rounds of two cells of each W&B mode.
        modes: W&B modes.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    rounds: int = 4
    modes: tuple[str, ...] = ("disabled", "offline")
    trainer: dict[str, Any] = field(default_factory=lambda: {"max_epochs": 2, "accelerator": "cpu", "devices": 1})


def _dann(backbone: str, width: int) -> dict[str, Any]:
    network = {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": backbone}}
    return {"class_path": "DANN", "init_args": {"network": network, "width": width, "depth": 1}}


_DIGITS = {"source": ["mnist"], "target": ["mnistm"], "steps_per_epoch": 25}
SETTING = Setting(_dann("mnist_net", 100), {"class_path": "Digits", "init_args": _DIGITS})
_TOY_DATA = {"source": ["a"], "target": ["b"], "steps_per_epoch": 2, "batch_size": 4}
QUICK = Setting(
    _dann("dafw.testing.toys.ToyNet", 8),
    {"class_path": "dafw.testing.toys.ToyData", "init_args": _TOY_DATA},
    rounds=1,
    modes=("disabled",),
)


def overhead(setting: Setting, mode: str, seed: int, root: Path) -> float:
    """Seconds of one cell that are neither training nor evaluation.

    Raises:
        AssertionError: if the run has no result.
    """
    config = {
        "seed_everything": seed,
        "model": setting.model,
        "data": setting.data,
        "trainer": setting.trainer,
        "run": {"wandb": mode, "plots": False},
    }
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        folder = execute(config, root)
    gc.collect()  # as a table's worker does between two cells
    taken = time.perf_counter() - start
    result = read_result(folder)
    assert result is not None, folder
    return taken - result.seconds["train"] - result.seconds["evaluate"]


def measure(quick: bool = False) -> list[Measure]:
    """The overhead of a cell, with W&B switched off and offline."""
    setting = QUICK if quick else SETTING
    found: dict[str, list[float]] = {mode: [] for mode in setting.modes}
    with TemporaryDirectory() as name, patch.dict(os.environ):
        os.environ.pop("WANDB_MODE", None)
        root, seed = Path(name), 0
        for mode in setting.modes:
            say(f"cell: first one, W&B {mode}: {overhead(setting, mode, seed, root):.2f} s beyond its training")
            seed += 1
        for number, order in enumerate(mirrored(setting.modes, setting.rounds), 1):
            for mode in order:
                found[mode].append(overhead(setting, mode, seed, root))
                seed += 1
            last = ", ".join(f"{mode} {values[-1]:.2f} s" for mode, values in found.items())
            say(f"cell: round {number} of {setting.rounds}, {last}")
    return [timed(f"a warm cell, W&B {mode}", "s", values, limit=LIMIT) for mode, values in found.items()]
