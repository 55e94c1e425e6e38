"""A run: one method on one task with one seed, in one directory. Nothing is imported that needs torch until it runs."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dafw import __version__
from dafw.errors import UserError

SCHEMA_VERSION = 1
RESULT = "result.json"
#: Keys that change where or how fast a run is made, not its numbers.
INCIDENTAL: dict[str, set[str]] = {
    "trainer": {"devices", "accelerator", "num_nodes", "strategy", "logger", "callbacks", "default_root_dir"}
    | {"enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler", "log_every_n_steps"},
    "data": {"num_workers", "cache"},
}
#: Lightning's callbacks that only look on. Any other may change a run's numbers, so that it is part of what the run is.
ONLOOKERS = {"ProgressBar", "RichProgressBar", "TQDMProgressBar", "ModelSummary", "RichModelSummary"}
ONLOOKERS |= {"DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor", "ModelCheckpoint"}
LIGHTNING = ("", "pytorch_lightning", "lightning")
#: What a monitored value begins with that target labels decide.
ORACLE = "oracle/"


class Busy(UserError):
    """Another process works on the run directory."""


def config_hash(config: dict[str, Any]) -> str:
    """Eight hexadecimal digits of what determines a run's numbers: its configuration without paths and machinery."""
    parts = ("seed_everything", "model", "data", "trainer")
    kept = json.loads(json.dumps({key: config[key] for key in parts if config.get(key) is not None}))
    callbacks = changing_callbacks(config)
    arguments = (kept.get("model") or {}).get("init_args") or {}
    if isinstance(arguments.get("checkpoint"), str):
        arguments["checkpoint"] = within_run(arguments["checkpoint"])
    data = (kept.get("data") or {}).get("init_args") or {}
    for side in {"source", "target"} & set(data):
        data[side] = [str(name) for name in data[side]] if isinstance(data[side], list) else str(data[side])
    for key, names in INCIDENTAL.items():
        part = kept.get(key)
        if isinstance(part, dict):
            arguments = part.get("init_args", part)
            for name in names & set(arguments):
                del arguments[name]
    if callbacks:
        kept["callbacks"] = callbacks
    text = json.dumps([SCHEMA_VERSION, _canonical(kept)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changing_callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a configuration that may change its run's numbers, as class paths and arguments.

    These are all but :data:`ONLOOKERS`, and of those the ones that monitor what target labels say: a run that kept
    checkpoints by them must not pass for one that did not.

    >>> changing_callbacks({"trainer": {"callbacks": [{"class_path": "SWAD"}, {"class_path": "DeviceStatsMonitor"}]}})
    [{'class_path': 'SWAD', 'init_args': {}}]
    """
    given = (config.get("trainer") or {}).get("callbacks") or []
    found: list[dict[str, Any]] = []
    for one in given if isinstance(given, list) else [given]:
        entry: dict[str, Any] = one if isinstance(one, dict) else {"class_path": str(one)}
        home, _, name = str(entry.get("class_path")).rpartition(".")
        of_lightning = home.split(".")[0] in LIGHTNING
        arguments = {key: entry[key] for key in ("init_args", "dict_kwargs") if isinstance(entry.get(key), dict)}
        onlooker = of_lightning and name in ONLOOKERS
        if not onlooker or any(str(part.get("monitor")).startswith(ORACLE) for part in arguments.values()):
            path = name if of_lightning else entry.get("class_path")
            found.append(
                {"class_path": path, "init_args": {}, **{key: part for key, part in arguments.items() if part}}
            )
    return found


def averages_weights(config: dict[str, Any]) -> bool:
    """Whether a callback replaces the final weights by an average over training, which no validation is of.

    Which ones do is what :func:`dafw.callbacks.averaging.averaging` finds when they are there.
    """
    paths = [str(callback["class_path"]).split(".") for callback in changing_callbacks(config)]
    return any(
        path == ["StochasticWeightAveraging"] or (path[-1] == "SWAD" and path[0] in ("SWAD", "dafw")) for path in paths
    )


def within_run(checkpoint: str) -> str:
    """A path from the run directory on, whose name ends in its own hash: wherever the run lies. Others as they are.

    >>> within_run("/disk/runs/SourceOnly-a-b-s0-0123abcd/checkpoints/step=5.ckpt")
    'SourceOnly-a-b-s0-0123abcd/checkpoints/step=5.ckpt'
    """
    parts = Path(checkpoint).parts
    starts = [position for position, part in enumerate(parts) if re.fullmatch(r".+-[0-9a-f]{8}", part)]
    return "/".join(parts[starts[-1] :]) if starts else checkpoint


def _canonical(value: Any) -> Any:
    """The same whether a class is named ``DANN`` or by its path, and whether an absent value is written as null."""
    if isinstance(value, dict):
        return {
            key: item.rpartition(".")[2]
            if key == "class_path" and item.split(".")[0] in ("dafw", "datamodules")
            else _canonical(item)
            for key, item in value.items()
            if item is not None
        }
    return [_canonical(item) for item in value] if isinstance(value, list) else value


def run_directory(config: dict[str, Any], root: Path) -> Path:
    """Where the run of ``config`` lives: method, task and seed for people, the hash for uniqueness."""
    method = str(config["model"]["class_path"]).rpartition(".")[2]
    arguments = config["data"].get("init_args", {})
    sides = [arguments.get(side, "") for side in ("source", "target")]
    task = "-".join("+".join(map(str, side if isinstance(side, list | tuple) else [side])) for side in sides)
    slug = re.sub(r"[^\w.+-]+", "_", f"{method}-{task}-s{config.get('seed_everything', 0)}")
    return Path(root) / f"{slug[:120]}-{config_hash(config)}"


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is done; ``None`` otherwise.

    Raises:
        UserError: if the file is damaged or of another schema.
    """
    path = Path(folder) / RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: remove it to make the run again") from error
    if not isinstance(result, dict) or result.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} has another schema: remove it to make the run again")
    return result


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is complete whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a run directory; the operating system lets go of it when the process ends, however it ends.

    Raises:
        Busy: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise Busy(f"another process works on {folder}") from error
    try:
        yield
    finally:
        held.release()


def provenance() -> dict[str, Any]:
    """Versions, git revision and machine, for the result."""
    import pytorch_lightning
    import timm
    import torch
    import torchvision

    packages = {"torch": torch, "torchvision": torchvision, "pytorch_lightning": pytorch_lightning, "timm": timm}
    versions = {"dafw": __version__, "python": platform.python_version()}
    versions |= {name: str(package.__version__) for name, package in packages.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "versions": versions,
        "git_revision": _git_revision(),
        "machine": f"{platform.system().lower()} {platform.machine()}, {os.cpu_count()} cores, {device}",
    }


def _git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parents[1]), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def execute(config: dict[str, Any], root: Path) -> Path:
    """Makes or resumes one run in this process.

    Args:
        config: as in a configuration file (``seed_everything``, ``model``, ``data``, ``trainer``, ``run``).
        root: folder of the run directories.

    Returns:
        The run directory, which has a result.

    Raises:
        UserError: for a mistake in the configuration; ``Busy`` if another process makes the same run.
        NonFiniteLoss: if a loss became NaN or infinite.
        Stopped: if a signal ended the run.
    """
    folder = run_directory(config, root)
    if read_result(folder) is None:
        asked = {**config, "run": {**config.get("run", {}), "dir": str(folder)}}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "asked.yaml", yaml.safe_dump(asked, sort_keys=False))
        from dafw.run.commands import fit
        from dafw.run.config import parse

        fit(parse(["--config", str(folder / "asked.yaml")]))
    return folder


def run_command(command: str, arguments: Sequence[str]) -> int:
    """``dafw fit``, ``validate``, ``test`` or ``predict``."""
    from dafw.run.commands import main

    return main(command, list(arguments))
