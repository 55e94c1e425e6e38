"""Stands in for training: functions like ``execute`` that end at once, or badly, as ``run.behave`` says."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dafw.errors import UserError
from dafw.files import Busy, write_atomically
from dafw.run.directory import lock, run_directory
from dafw.run.result import SCHEMA_VERSION

SETTINGS = {
    "adaptation": {"name": "adaptation", "source": True, "target": True},
    "generalization": {"name": "generalization", "source": True, "target": False},
    "source-free": {"name": "source-free", "source": False, "target": True},
}


def write_result(directory: Path, config: dict[str, Any], accuracy: float, **parts: Any) -> None:
    """A ``result.json`` as a run writes it; ``parts`` replaces keys."""
    data = config["data"]["init_args"]
    source, target = data["source"], data["target"]
    result = {
        "schema_version": SCHEMA_VERSION,
        "method": config["model"]["class_path"],
        "task": f"{','.join(source)}->{','.join(target)}",
        "source": source,
        "target": target,
        "setting": SETTINGS["adaptation"],
        "seed": config["seed_everything"],
        "oracle": bool(data.get("oracle", False)),
        "transductive_reason": "",
        "averaged": "",
        "monitors": [],
        "norm": "joint",
        "ranks": 1,
        "threads": 1,
        "config_hash": directory.name[-8:],
        "steps": 1000,
        "seconds": {"total": 61.2, "train": 50.0, "evaluate": 8.0},
        "num_target_test": 1000,
        "metric": "accuracy",
        "label_sets": {"kind": "closed", "common": 10, "source_private": 0, "target_private": 0},
        "undefined_reason": {},
        "by_class": {},
        "test": {name: {"accuracy": accuracy} for name in [*target, *source]},
        "history": [],
        "higher_is_better": {"im": True, "snd": True, "loss": False},
        "versions": {"dafw": "0.1.0", "torch": "2.15.0"},
        "git_revision": "abcdef1234567890",
        "machine": "linux x86_64, 2 cores, cpu",
        "checkpoint": "",
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "result.json", json.dumps(result | parts))


def calls(root: Path) -> list[str]:
    """The run directories that were executed, in order."""
    path = root / "calls.txt"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def execute(config: dict[str, Any], root: Path) -> Path:
    """Writes a result, after what ``run.behave`` asks for: a word, with ``once`` behind it for the first attempt only.

    Raises:
        Busy: if another process holds the directory.
    """
    directory = run_directory(config, root)
    with lock(directory):
        if (directory / "result.json").exists():
            return directory
        with (root / "calls.txt").open("a", encoding="utf-8") as file:
            file.write(f"{directory.name}\n")
        print(f"executing {directory.name} with {os.environ.get('OMP_NUM_THREADS')} threads")
        start = config["model"].get("init_args", {}).get("checkpoint")
        if start is not None and not (Path(start) / "result.json").exists():
            raise UserError(f"{start} is not done")
        behave, _, often = str(config.get("run", {}).get("behave", "well")).partition(" ")
        if often != "once" or calls(root).count(directory.name) == 1:
            _misbehave(behave, directory)
        score = 0.5 + 0.01 * config["seed_everything"] + 0.1 * (config["model"]["class_path"] == "DANN")
        write_result(directory, config, score)
    return directory


def _misbehave(behave: str, directory: Path) -> None:
    if behave == "raise":
        raise RuntimeError("something\nbroke badly")
    if behave == "mistake":
        raise UserError("there is no such layer")
    if behave == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behave == "give_up":
        print("stopped without a word", file=sys.stderr)
        raise SystemExit(3)
    if behave == "sleep":
        time.sleep(0.4)
    if behave == "train":
        _train_until_sigterm(directory)


def _train_until_sigterm(directory: Path) -> None:
    """Goes on until SIGTERM, on which it saves, as a run does."""
    came: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: came.append(signum))
    (directory / "training").touch()
    deadline = time.monotonic() + 60
    while not came and time.monotonic() < deadline:
        time.sleep(0.02)
    signal.signal(signal.SIGTERM, previous)
    (directory / "checkpoint").write_text("saved", encoding="utf-8")
    raise InterruptedError("stopped by SIGTERM")


def busy_elsewhere(config: dict[str, Any], root: Path) -> Path:
    """Finds every directory held, as if another machine held it.

    Raises:
        Busy: always.
    """
    raise Busy("another process works on it")
