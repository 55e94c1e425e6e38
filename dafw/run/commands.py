"""The commands that train and evaluate, and what their exit codes say."""

import re
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from dafw.callbacks import Checkpointing, Stopped, Stopping
from dafw.callbacks.checkpointing import FULL, checkpoints
from dafw.checkpoints import check_classes, check_method, check_rule
from dafw.errors import UserError, choose, sentence
from dafw.methods import Method
from dafw.methods.step_log import NonFiniteLoss
from dafw.nn.distributed import leave_process_group
from dafw.run.artifacts import Clock, gather_predictions, write_plots, write_predictions, write_result
from dafw.run.config import DafwCLI, RunOptions, parse, resolved_config
from dafw.run.directory import config_hash, lock, read_result, run_directory, write_atomically
from dafw.run.loggers import CsvLog, rank, wandb_logger
from dafw.selection import VALIDATORS


def main(command: str, arguments: list[str]) -> int:
    """Runs one of the four commands; see :func:`dafw.cli.main` for the exit codes."""
    code = _main(command, arguments)
    leave_process_group()  # not after an error, where another rank may still wait for this one
    return code


def _main(command: str, arguments: list[str]) -> int:
    """Where all ranks end for the same reason, rank 0 alone says so: the launchers kill it if another fails first."""
    try:
        cli = parse(arguments)
        return fit(cli) if command == "fit" else evaluate(command, cli)
    except Stopped as stopped:
        if rank():
            return 0
        print(f"dafw: {stopped}", file=sys.stderr)
        return 128 + int(stopped.signum)
    except NonFiniteLoss as error:
        if rank():
            return 0
        return _failed(sentence(error))
    except SystemExit as ended:  # how Lightning ends after a signal that came before ours were taken over
        if isinstance(ended, SIGTERMException):
            return 128 + signal.SIGTERM
        if isinstance(ended.__context__, KeyboardInterrupt):
            return 128 + signal.SIGINT
        raise
    except MisconfigurationException as error:
        raise UserError(sentence(error)) from error
    except (OSError, EOFError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"no space left on the disk{f' for {error.filename}' if error.filename else ''}") from error
        if _lost_worker(error):
            return _failed("a process that loaded data was killed; the same command goes on from the last checkpoint")
        if isinstance(error, RuntimeError) and re.search(r"(closed|reset) by peer|remote process", str(error)):
            return _failed("" if rank() else "another rank ended before this one, and says why")
        raise


def _lost_worker(error: BaseException) -> bool:
    """Whether a data loader's process is gone: its own word for it, or a pipe that broke within the loader."""
    if "DataLoader worker" in str(error):
        return True
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ConnectionError | EOFError) and any("torch/utils/data" in file for file in files)


def _failed(said: str) -> int:
    if said:
        print(f"dafw: error: {said}", file=sys.stderr)
    return 1


def fit(cli: DafwCLI) -> int:
    """Trains or resumes, tests, and writes the result."""
    options: RunOptions = cli.config_init["run"]
    config = resolved_config(cli)
    folder = Path(options.dir) if options.dir else run_directory(config, Path(options.root))
    if options.dir:
        refuse_other_run(folder, config)
    if read_result(folder) is not None:
        if not rank():
            print(f"done already: {folder / 'result.json'}")
        return 0
    if rank():
        return _fit(cli, config, folder)
    fresh = not folder.exists()
    with lock(folder):
        if read_result(folder) is not None:  # another process finished it in the meantime
            return 0
        try:
            write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            return _fit(cli, config, folder)
        except UserError:
            if fresh and not cli.model.steps_done:  # nothing was trained: leave nothing behind
                shutil.rmtree(folder)
            raise


def refuse_other_run(folder: Path, config: dict[str, Any]) -> None:
    """A directory holds one run.

    Raises:
        UserError: if ``folder`` holds a run of another configuration.
    """
    path = folder / "config.yaml"
    if path.exists() and config_hash(yaml.safe_load(path.read_text(encoding="utf-8"))) != config_hash(config):
        raise UserError(f"{folder} holds a run of another configuration: give another run.dir, or remove it")


def _fit(cli: DafwCLI, config: dict[str, Any], folder: Path) -> int:
    options: RunOptions = cli.config_init["run"]
    if cli.config_init["ckpt_path"]:
        raise UserError("ckpt_path is for validate, test and predict: fit goes on from the checkpoint in its directory")
    tracker: Any = wandb_logger(
        folder,
        mode=options.wandb,
        project=options.project or type(cli.datamodule).__name__,
        group=type(cli.model).__name__,
        name=folder.name,
        run_id=config_hash(config),
        config=config,
    )
    try:
        train(cli, config, folder, tracker)
    except BaseException:
        if tracker is not None:  # or the next run of this process would go on in its W&B run
            tracker.experiment.finish(exit_code=1)
        raise
    return 0


def train(cli: DafwCLI, config: dict[str, Any], folder: Path, tracker: Any) -> None:
    """Trains or resumes in ``folder``, tests, and writes the result."""
    options: RunOptions = cli.config_init["run"]
    method, data = cli.model, cli.datamodule
    log = CsvLog(folder / "metrics.csv")
    checkpointing = Checkpointing(folder / "checkpoints", options.checkpoint_every, options.keep_checkpoints)
    clock = Clock()
    callbacks = [clock, Stopping(checkpointing), checkpointing]
    trainer = cli.make_trainer(callbacks, [log, *([tracker] if tracker else [])], folder)
    check_trainer(trainer, method, options.allow_oracle)
    newest = next(iter(checkpoints(checkpointing.folder)), None)
    log.forget_after(-1 if newest is None else check_method(newest, type(method))["dafw"]["steps"])
    try:
        trainer.fit(method, datamodule=data, ckpt_path=newest, weights_only=True)
    except NonFiniteLoss as error:
        good = next(iter(checkpoints(checkpointing.folder)), None)
        raise NonFiniteLoss(f"{error}; the last good checkpoint is {good}") from error
    trainer.test(method, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        pictures = write_plots(method, data, folder) if options.plots else []
        result = write_result(trainer, method, data, config, folder, clock)
        if tracker is not None:
            track_result(tracker, folder, result, pictures)
        for name in data.target:
            reason = f" ({result['undefined'][name]})" if name in result["undefined"] else ""
            print(f"{name}: {result['metric']} {result['test'][name][result['metric']]:.4f}{reason}")
        print(f"{folder / 'result.json'}")


def check_trainer(trainer: pl.Trainer, method: Method, allow_oracle: bool) -> None:
    """What can be said of a trainer before it trains.

    Raises:
        UserError: if the training has no end, an epoch is not ours, or a callback must not monitor what it does.
    """
    check_monitors(trainer, method, allow_oracle)
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise UserError("the training has no end: give trainer.max_epochs or trainer.max_steps")
    if trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError("an epoch has data.steps_per_epoch steps: give that instead of trainer.limit_train_batches")


def check_monitors(trainer: pl.Trainer, method: Method, allowed: bool) -> None:
    """Target labels must not choose a checkpoint or stop a run, and what is monitored must exist.

    Raises:
        UserError: if a callback monitors an ``oracle/`` value and that was not allowed, or an unknown ``val/`` value.
    """
    known = [f"val/{name}" for name in directions(method)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("oracle/") and not allowed:
            raise UserError(
                f'{type(callback).__name__} monitors "{monitor}", which target labels decide: '
                f"use {', '.join(known[-1:] + known[:2])} or say run.allow_oracle: true"
            )
        if monitor.startswith("val/"):
            choose(f"monitor of {type(callback).__name__}", monitor, known)


def directions(method: Method) -> dict[str, bool]:
    """The validators that a run of this method records, and whether higher is better."""
    sources = method.setting.sees_source
    present = {name: each for name, each in VALIDATORS.items() if sources or not each.needs_source}
    found = (
        {name: validator.higher_is_better for name, validator in present.items()}
        if method.supports_unsupervised_validators
        else {}
    )
    return found | ({"source_loss": False, f"source_{method.problem.primary}": True} if sources else {})


def track_result(tracker: Any, folder: Path, result: dict[str, Any], pictures: list[Path]) -> None:
    """Sends pictures and result to W&B."""
    import wandb

    run = tracker.experiment
    run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures})
    run.summary.update({f"test/{d}/{k}": v for d, metrics in result["test"].items() for k, v in metrics.items()})
    artifact = wandb.Artifact(f"result-{result['config_hash']}", type="result")
    artifact.add_file(str(folder / "result.json"))
    run.log_artifact(artifact)
    run.finish()


def evaluate(command: str, cli: DafwCLI) -> int:
    """``validate``, ``test`` or ``predict`` with a checkpoint."""
    options: RunOptions = cli.config_init["run"]
    problem = cli.model.problem
    if command == "predict" and not problem.supports_unsupervised_validators:
        raise UserError(f"predict writes a class for each sample, not {type(problem).__name__}: use Trainer.predict")
    folder = Path(options.dir) if options.dir else run_directory(resolved_config(cli), Path(options.root))
    path = cli.config_init["ckpt_path"] or next(map(str, checkpoints(folder / "checkpoints")), None)
    if path is None:
        raise UserError(f"there is no checkpoint in {folder / 'checkpoints'}: train first, or give --ckpt_path")
    content = check_method(path, type(cli.model))
    held = content["dafw"]["method"]["init_args"].get("num_classes", cli.model.num_classes)
    if held != cli.model.num_classes:
        raise UserError(f"{path} predicts {held} classes, but the data has {cli.model.num_classes}")
    check_classes(content, path, cli.datamodule.known_names)
    if command != "validate":  # which fits a threshold anew
        check_rule(content, path, cli.model)
    try:
        cli.model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} does not fit this configuration: {first}") from error
    trainer = cli.make_trainer([Stopping()], [], folder)
    if command == "predict":
        output = Path(cli.config_init["output"] or "predictions.csv")
        predicted = gather_predictions(trainer.predict(cli.model, datamodule=cli.datamodule) or [], cli.datamodule)
        if trainer.is_global_zero:
            write_predictions(predicted, cli.datamodule, output)
            print(output)
        return 0
    getattr(trainer, command)(cli.model, datamodule=cli.datamodule, verbose=False)
    for name, value in sorted(trainer.callback_metrics.items()) if trainer.is_global_zero else ():
        print(f"{name.partition('/dataloader_idx')[0]:<40} {float(value):.4f}")
    return 0
