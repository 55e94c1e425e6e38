"""The commands that train and evaluate: LightningCLI parses, this runs."""

import logging
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

import dafw.methods  # so that short names of methods resolve
import datamodules
from dafw.callbacks import Checkpointing, Stopped, Stopping, progress_callback
from dafw.callbacks.checkpointing import FULL, checkpoints
from dafw.checkpoints import check_method
from dafw.errors import UserError, choose, sentence
from dafw.loggers import CsvLog, WandbMode, wandb_logger
from dafw.methods.record import NonFiniteLoss
from dafw.parse_errors import broken_file, explain
from dafw.results import Clock, gather_predictions, write_plots, write_predictions, write_result
from dafw.runs import identity, lock, read_result, run_directory, write_atomically
from dafw.selection import VALIDATORS
from datamodules.base import DomainDataModule

_ = (datamodules.Digits, datamodules.ImageFolderDomains)  # so that short names of datamodules resolve
ABSTRACT = ("Method", "AdaptationMethod", "DomainDataModule")


@dataclass
class RunOptions:
    """Where a run lives and what it writes.

    Args:
        root: folder of the run directories.
        dir: the run directory; by default its name is made of method, task, seed and a hash of the configuration.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: how many of the newest checkpoints stay.
        wandb: W&B mode: offline, online or disabled.
        project: W&B project; the datamodule's name by default.
        plots: write embedding, confusion matrix and curves.
        allow_oracle: allow a callback to monitor what target labels say.
    """

    root: str = "runs"
    dir: str | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    wandb: WandbMode = "offline"
    project: str | None = None
    plots: bool = True
    allow_oracle: bool = False


class DafwCLI(LightningCLI):
    """LightningCLI with our links, defaults and run options; it parses and instantiates, nothing more."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            dafw.methods.Method,
            DomainDataModule,
            run=False,
            args=arguments,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": 10,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "logger": False,
                "log_every_n_steps": 50,
            },
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": "dafw"},
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with the default network where none is given."""
        super().parse_arguments(parser, with_network(parser, list(args)))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what one side knows and the other needs; adds the run options."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.add_argument("--run", type=RunOptions, default=RunOptions())
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to evaluate")
        parser.add_argument("--output", type=str | None, default=None, help="where predict writes its file")

    def before_instantiate_classes(self) -> None:
        """Refuses what has arguments but no class: the parser would make the abstract base."""
        for key in ("model", "data"):
            home, _, name = self.config[key]["class_path"].rpartition(".")
            if home.split(".")[0] in ("dafw", "datamodules") and name in ABSTRACT:
                raise UserError(f"{key} must be given")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer is made later, when the run directory is known."""
        self.trainer_arguments = kwargs
        return None  # type: ignore[return-value]

    def make_trainer(self, callbacks: list[pl.Callback], loggers: list[Any], folder: Path) -> pl.Trainer:
        """The trainer with this run's callbacks and loggers beside the user's."""
        config = dict(self.config_init["trainer"])
        own = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
        config["logger"] = loggers + [logger for logger in own if logger not in (None, False, True)]
        config["default_root_dir"] = str(folder)
        progress = [] if config["enable_progress_bar"] is False else [progress_callback()]
        config["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in progress)
        config["callbacks"] = [*(config["callbacks"] or []), *callbacks, *progress]
        try:
            trainer = pl.Trainer(**config)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"trainer: {sentence(error)}") from error
        if isinstance(trainer.strategy, DDPStrategy):
            # Buffers agree by construction, and a broadcast in evaluation would wait for ranks with fewer batches.
            trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
        return trainer


def with_network(parser: LightningArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments, with ``Network()`` if the method needs a network and neither they nor a file name one."""
    if any(argument.startswith("--model.network") for argument in arguments):
        return arguments
    try:
        parser.parse_args([argument for argument in arguments if not argument.startswith("--print_config")])
    except ArgumentError as error:
        if "arguments are required: network" in str(error):
            return [*arguments, "--model.network", "dafw.nn.network.Network"]
    return arguments


def parse(arguments: list[str]) -> DafwCLI:
    """Parses and instantiates. A method without a network gets ``Network()``, the MNIST network of the DANN paper.

    Raises:
        UserError: for a wrong key, value, class or path.
    """
    _quiet()
    for key, source in (("data.seed", "seed_everything"), ("model.num_classes", "the datamodule")):
        short = {f"--{key}", f"--{key.replace('.', '.init_args.')}"}
        if any(argument.partition("=")[0] in short for argument in arguments):
            raise UserError(f"{key} cannot be given: it comes from {source}")
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        return DafwCLI(arguments)
    except ArgumentError as error:
        raise _user_error(error) or UserError(explain(str(error), arguments)) from error
    except ValueError as error:
        found = [str(cause) for cause in _causes(error) if isinstance(cause, ValueError)]
        raise _user_error(error) or UserError(broken_file(arguments) or " ".join(found[-1].split())) from error
    finally:
        sys.argv = argv


def _user_error(error: BaseException) -> UserError | None:
    """The error of ours behind one of the parser's."""
    return next((cause for cause in _causes(error) if isinstance(cause, UserError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _quiet() -> None:
    """Silences what Lightning says to everyone and nobody can act on."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*srun.*",
        ".*tensorboardX.*",
        ".*sync_dist=True.*",
        ".*your dataloader is not resumable.*",
        r".*module\(s\) in eval mode.*",
        ".*smaller than the logging interval.*",
        ".*LightningCLI's args parameter.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory.*",
        ".*LeafSpec.*",
        ".*custom batch sampler `ShardSampler`.*",
        "(?s).*does not round-trip.*",
        ".*smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def main(command: str, arguments: list[str]) -> int:
    """Runs one of the four commands; see :func:`dafw.cli.main` for the exit codes.

    Where all ranks end for the same reason, rank 0 alone says so: the launchers kill it if another fails first.
    """
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
        print(f"dafw: error: {sentence(error)}", file=sys.stderr)
        return 1
    except MisconfigurationException as error:
        raise UserError(sentence(error)) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"no space left on the disk{f' for {error.filename}' if error.filename else ''}") from error
    except RuntimeError as error:
        match = re.search(r"DataLoader worker \(pid.*?(\d+)\)", str(error))
        if match is None:
            raise
        print(f"dafw: error: process {match[1]}, which loads data, was killed; run the same command again to go on")
        return 1


def rank() -> int:
    """Number of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


def complete(cli: DafwCLI) -> dict[str, Any]:
    """The whole configuration, as written to ``config.yaml``."""
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False, skip_link_targets=False))
    return config


def fit(cli: DafwCLI) -> int:
    """Trains or resumes, tests, and writes the result."""
    options: RunOptions = cli.config_init["run"]
    config = complete(cli)
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
    if path.exists() and identity(yaml.safe_load(path.read_text(encoding="utf-8"))) != identity(config):
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
        run_id=identity(config),
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
    check_monitors(trainer, method, options.allow_oracle)
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise UserError("the training has no end: give trainer.max_epochs or trainer.max_steps")
    newest = next(iter(checkpoints(checkpointing.folder)), None)
    if newest is not None:
        log.forget_after(check_method(newest, type(method))["dafw"]["steps"])
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
            print(f"{name}: {method.problem.primary} {result['test'][name][method.problem.primary]:.4f}")
        print(f"{folder / 'result.json'}")


def check_monitors(trainer: pl.Trainer, method: dafw.methods.Method, allowed: bool) -> None:
    """Target labels must not choose a checkpoint or stop a run, and what is monitored must exist.

    Raises:
        UserError: if a callback monitors an ``oracle/`` value and that was not allowed, or an unknown ``val/`` value.
    """
    known = [f"val/{name}" for name in (f"source_{method.problem.primary}", *VALIDATORS)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("oracle/") and not allowed:
            raise UserError(
                f'{type(callback).__name__} monitors "{monitor}", which target labels decide: '
                "use val/source_accuracy, val/im, ... or say run.allow_oracle: true"
            )
        if monitor.startswith("val/"):
            choose(f"monitor of {type(callback).__name__}", monitor, known)


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
    folder = Path(options.dir) if options.dir else run_directory(complete(cli), Path(options.root))
    path = cli.config_init["ckpt_path"] or next(map(str, checkpoints(folder / "checkpoints")), None)
    if path is None:
        raise UserError(f"there is no checkpoint in {folder / 'checkpoints'}: train first, or give --ckpt_path")
    content = check_method(path, type(cli.model))
    held = content["dafw"]["method"]["init_args"].get("num_classes", cli.model.num_classes)
    if held != cli.model.num_classes:
        raise UserError(f"{path} predicts {held} classes, but the data has {cli.model.num_classes}")
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
