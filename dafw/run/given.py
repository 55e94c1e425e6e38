"""A trained run that a command is given: ``dafw predict RUN``. Its checkpoint, and what its classes are."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from dafw.checkpoints import checkpoints, read_checkpoint
from dafw.errors import UserError
from dafw.files import user_path
from dafw.methods.starting import find_checkpoint
from dafw.nn.detector import Detector  # short names resolve then, as of the next one
from dafw.nn.segmentation import SegmentationNetwork
from dafw.run.directory import CONFIG, run_directory, run_of

NETWORK = "dafw.nn.network.Network"
#: Networks that a method takes from the checkpoint that it starts from.
NETWORKS = (NETWORK, *(f"{one.__module__}.{one.__qualname__}" for one in (SegmentationNetwork, Detector)))

_start_comes_later: ContextVar[bool] = ContextVar("_start_comes_later", default=False)


@contextmanager
def start_comes_later(later: bool = True) -> Iterator[None]:
    """Inside, the checkpoint that a run starts from need not be there yet; then its classes are not known.

    Args:
        later: ``False`` changes nothing.
    """
    token = _start_comes_later.set(later)
    try:
        yield
    finally:
        _start_comes_later.reset(token)


def with_run(command: str, arguments: list[str]) -> list[str]:
    """Writes ``RUN ...`` as ``--config RUN/config.yaml --run.dir RUN ...``; a checkpoint becomes ``--ckpt_path`` too.

    A checkpoint that ``--ckpt_path`` names stands for its run if nothing else says what the run is.

    Args:
        command: ``validate``, ``test`` or ``predict``.
        arguments: those of the command. If the first one is no option, it is a run directory or a checkpoint.

    Raises:
        UserError: if there is no such run, no configuration beside the checkpoint, or nothing that says what the run
            is.
    """
    if arguments and not arguments[0].startswith("-"):
        given, *rest = arguments
        place = user_path(given)
        if not place.exists():
            raise UserError(f"there is no run {given}: dafw {command} takes a run directory or a checkpoint")
        inside = place if place.is_dir() else place.parent
        if (folder := run_of(inside)) is None:
            raise UserError(f"{given} is no run: there is no {CONFIG} in {inside} or in {inside.parent}")
        checkpoint = [] if place.is_dir() else ["--ckpt_path", str(place)]
        return ["--config", str(folder / CONFIG), "--run.dir", str(folder), *checkpoint, *rest]
    keys = [argument.partition("=")[0] for argument in arguments]
    if any(
        key.startswith(("--config", "--model", "--data", "--help", "--print_config")) or key == "-h" for key in keys
    ):
        return arguments
    if "--ckpt_path" in keys:
        words = [part for argument in arguments for part in argument.split("=", 1)]
        path = Path(words[words.index("--ckpt_path") + 1]) if words[-1] != "--ckpt_path" else Path()
        folder = run_of(user_path(path).parent)
        return arguments if folder is None else ["--config", str(folder / CONFIG), "--run.dir", str(folder), *arguments]
    raise UserError(f"dafw {command} needs a run, its directory or one of its checkpoints: dafw {command} RUN")


def run_folder(config: dict[str, Any]) -> Path:
    """The directory of the run with this complete configuration."""
    run = config["run"]
    return user_path(run["dir"]) if run["dir"] else run_directory(config, user_path(run["root"]))


def trained_checkpoint(config: dict[str, Any]) -> Path | None:
    """The checkpoint that an evaluation reads: ``ckpt_path``, or the newest of the run; ``None`` if there is none."""
    if config.get("ckpt_path"):
        return user_path(config["ckpt_path"])
    return next(iter(checkpoints(run_folder(config) / "checkpoints")), None)


def trained_classes(config: dict[str, Any]) -> list[str]:
    """The classes of the run's checkpoint, or of the one that it starts from; empty without a checkpoint."""
    path = trained_checkpoint(config)
    start = config["model"]["init_args"].get("checkpoint")
    if path is None and start:
        with suppress(UserError) if _start_comes_later.get() else nullcontext():
            path = find_checkpoint(start)
    return [] if path is None else list(read_checkpoint(path)["dafw"]["classes"])


def import_backbone(config: dict[str, Any]) -> None:
    """Imports the modules of the backbones, or of the architecture, if the configuration names a class.

    A checkpoint may not choose a module.
    """
    for place, key in (("network", "backbone"), ("network", "arch"), ("cloud", "backbone")):
        network = config["model"]["init_args"].get(place) or {}
        module = str(network.get("init_args", {}).get(key)).rpartition(".")[0]
        with suppress(ImportError, ValueError):  # a name of timm; what is wrong is said when the backbone is made
            import_module(module)
