"""What is checked before a run trains."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from dafw.checkpoints import check_classes, check_method, check_samples, checkpoints
from dafw.errors import UserError, choose, warn
from dafw.lightning_adapter import connect
from dafw.methods import Method
from dafw.ranges import Range, check_ranges
from dafw.run.directory import CONFIG
from dafw.run.identity import ORACLE, config_hash, data_paths
from dafw.run.result import RESULT, Result
from dafw.run.sources import changed_since
from dafw.samples import Samples, changed_samples
from dafw.selection import Validator

_ONE, _NONE = Range("must be at least 1", 1), Range("must be at least 0", 0)
#: What the numbers among the trainer's arguments must be, where Lightning does not say it in a sentence.
TRAINER = {
    **dict.fromkeys(("num_nodes", "accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"), _ONE),
    **dict.fromkeys(("min_epochs", "min_steps", "gradient_clip_val", "limit_val_batches", "limit_test_batches"), _NONE),
    **dict.fromkeys(("max_epochs", "max_steps", "num_sanity_val_steps"), Range("must be at least -1", -1)),
    "val_check_interval": Range("must be above 0", 0, above=True),
}


def check_trainer_arguments(trainer: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Checks the trainer's arguments before anything is made.

    Args:
        trainer: the arguments of the trainer.
        data: the arguments of the datamodule.

    Raises:
        UserError: if a number is out of range, no validation would ever come, or nothing would be tested.
    """
    check_ranges("trainer", trainer, TRAINER)
    if trainer.get("limit_test_batches") == 0:
        raise UserError("trainer.limit_test_batches is 0, and a run ends with a test: leave it out")
    every, steps = trainer.get("val_check_interval"), data.get("steps_per_epoch")
    within_epoch = trainer.get("check_val_every_n_epoch", 1) is not None
    if isinstance(every, int) and isinstance(steps, int) and every > steps and within_epoch:
        raise UserError(
            f"trainer.val_check_interval is {every}, and an epoch has {steps} steps (data.steps_per_epoch): give "
            "trainer.check_val_every_n_epoch null to count the steps of the whole training"
        )


def refuse_other_run(folder: Path, config: dict[str, Any]) -> None:
    """Checks that a directory holds no other run.

    A directory whose name ends in the hash of ``config`` holds that run, whatever its ``config.yaml`` says: a power cut
    may have left nothing in it.

    Raises:
        UserError: if ``folder`` holds a run of another configuration, or checkpoints of an unknown one.
    """
    own, path = config_hash(config), folder / CONFIG
    if folder.name.endswith(f"-{own}"):
        return
    held = _held(path)
    if held:
        if config_hash(held) != own:
            raise UserError(f"{folder} holds a run of another configuration: give another run.dir, or remove it")
    elif path.exists() and checkpoints(folder / "checkpoints"):
        raise UserError(
            f"{path} is damaged, so nobody can tell of which run the checkpoints beside it are: give another run.dir, "
            f"or remove {folder}"
        )


def _held(path: Path) -> dict[str, Any]:
    """The configuration in a file; empty if the file is missing or damaged."""
    with suppress(ValueError, RecursionError, yaml.YAMLError):
        held = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
        return held if isinstance(held, dict) else {}
    return {}


def warn_of_changes(cli: Any, folder: Path, result: Result, served: Mapping[str, Samples] | None) -> None:
    """Says whether code or samples changed since a finished run was made. Data that is not there is not compared.

    Args:
        cli: holds the method and the data.
        folder: the run directory.
        result: the result of the run.
        served: the samples that the data serves, if they are known.
    """
    path, again = folder / RESULT, "--run.rerun true makes it again"
    if files := changed_since(result.sources):
        warn(f"{path} was made by other code, since {', '.join(files)} changed: {again}")
    if not result.samples or cli.model.accept_changed_data:
        return
    with suppress(UserError, OSError):
        served = _served(cli, folder) if served is None else served
        if served is not None and (said := changed_samples(result.samples, path, served)):
            warn(f"{said}; {again}")


def _served(cli: Any, folder: Path, *, prepare: bool = False) -> Mapping[str, Samples] | None:
    """The samples that the data serves to a fit, perhaps prepared before; ``None`` if only a fit can tell."""
    if not connect(cli.make_trainer([], [], folder), cli.model, cli.datamodule):
        return None
    if prepare:
        cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    found: Mapping[str, Samples] = cli.datamodule.samples("fit")
    return found


def check_moved_data(cli: Any, config: dict[str, Any], folder: Path) -> Mapping[str, Samples] | None:
    """Checks that the data of a finished run is the same if its folder or its manifest is another one now.

    Args:
        cli: holds the method and the data.
        config: the complete configuration.
        folder: the directory of the finished run.

    Returns:
        The samples that the data serves; ``None`` if they were not compared.

    Raises:
        UserError: if the samples differ from those that the run's last checkpoint was trained on.
    """
    held = _held(folder / CONFIG)
    newest = next(iter(checkpoints(folder / "checkpoints")), None)
    if not held or newest is None or data_paths(held) == data_paths(config):
        return None
    said = check_method(newest, type(cli.model))["dafw"]
    check_classes(said, newest, cli.datamodule.known_names, cli.model.accept_changed_data)
    if cli.model.accept_changed_data:
        return None
    served = _served(cli, folder, prepare=True)
    if served is not None:
        check_samples(said, newest, served)
    return served


def warn_of_validators(validators: Iterable[Validator], done: Result) -> None:
    """Says which validators a finished run was not given.

    Args:
        validators: those that are asked for.
        done: the result of the run.
    """
    if lacking := [one.name for one in validators if one.name not in done.higher_is_better]:
        warn(f"the finished run has no {', '.join(lacking)} of run.validators: --run.rerun true makes it again")


def check_trainer(trainer: pl.Trainer, method: Method, allow_oracle: bool) -> None:
    """Checks the trainer's options.

    Raises:
        UserError: if the training has no end, if the trainer cuts epochs short, or see :func:`check_monitors`.
    """
    check_monitors(trainer.callbacks, method, allow_oracle)  # type: ignore[attr-defined]
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise UserError("the training has no end: give trainer.max_epochs or trainer.max_steps")
    if trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError("an epoch has data.steps_per_epoch steps: give that instead of trainer.limit_train_batches")


def check_monitors(callbacks: Iterable[pl.Callback], method: Method, allowed: bool) -> None:
    """Checks that no target label chooses a checkpoint or stops a run, and that every monitored value exists.

    A method that is not of this package may log values of its own, so a name that has none of the two prefixes below
    may be one of them.

    Raises:
        UserError: if a callback monitors an ``oracle/`` value although that is not allowed, an unknown value, or any
            value of a validation in a setting without one.
    """
    known = [f"val/{name}" for name in directions(method)]
    logs_more = not type(method).__module__.startswith("dafw.")
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str):
            continue
        if method.setting.streams_target and monitor.startswith((ORACLE, "val/")):
            raise UserError(
                f'{type(callback).__name__} monitors "{monitor}", and a {method.setting.name} run has no validation'
            )
        if monitor.startswith(ORACLE) and not allowed:
            raise UserError(
                f'{type(callback).__name__} monitors "{monitor}", which target labels decide: '
                f"use {', '.join(known[-1:] + known[:2])} or say run.allow_oracle: true"
            )
        if monitor.startswith("val/") or not (logs_more or monitor.startswith(ORACLE)):
            choose(f"monitor of {type(callback).__name__}", monitor, known)


def directions(method: Method) -> dict[str, bool]:
    """By validator that a run of this method records, whether a higher score is better."""
    sources = method.setting.sees_source
    validators = method.evaluator.validators
    present = {name: each for name, each in validators.items() if sources or not each.needs_source}
    found = (
        {name: validator.higher_is_better for name, validator in present.items()}
        if method.supports_unsupervised_validators
        else {}
    )
    return found | ({"source_loss": False, f"source_{method.problem.primary}": True} if sources else {})
