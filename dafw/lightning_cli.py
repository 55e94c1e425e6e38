"""The commands that train and evaluate: LightningCLI parses, this runs."""

import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentError
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

import dafw.methods  # so that short names of methods resolve
import datamodules
from dafw.callbacks import Checkpointing, Stopped, Stopping, progress_callback
from dafw.callbacks.checkpointing import checkpoints
from dafw.checkpoints import check_method
from dafw.errors import UserError
from dafw.loggers import CsvLog, WandbMode, wandb_logger
from dafw.methods.record import NonFiniteLoss
from dafw.parse_errors import explain
from dafw.results import Clock, write_plots, write_predictions, write_result
from dafw.runs import identity, lock, read_result, run_directory, write_atomically
from datamodules.base import DomainDataModule

_ = (datamodules.Digits, datamodules.ImageFolderDomains)  # so that short names of datamodules resolve


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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what one side knows and the other needs; adds the run options."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.add_argument("--run", type=RunOptions, default=RunOptions())
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to evaluate")
        parser.add_argument("--output", type=str | None, default=None, help="where predict writes its file")

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
        config["enable_progress_bar"] = bool(config["enable_progress_bar"]) and sys.stdout.isatty()
        config["callbacks"] = [*(config["callbacks"] or []), *callbacks]
        trainer = pl.Trainer(**config)
        if isinstance(trainer.strategy, DDPStrategy):
            # Buffers agree by construction, and a broadcast in evaluation would wait for ranks with fewer batches.
            trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
        return trainer


def parse(arguments: list[str]) -> DafwCLI:
    """Parses and instantiates.

    Raises:
        UserError: for a wrong key, value, class or path.
    """
    _quiet()
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        return DafwCLI(arguments)
    except (ArgumentError, ValueError) as error:
        for cause in _causes(error):
            if isinstance(cause, UserError):
                raise cause from None
        if not isinstance(error, ArgumentError):
            raise
        raise UserError(explain(str(error))) from error
    finally:
        sys.argv = argv


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
        ".*modules in eval mode.*",
        ".*LightningCLI's args parameter.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def main(command: str, arguments: list[str]) -> int:
    """Runs one of the four commands; see :func:`dafw.cli.main` for the exit codes."""
    try:
        cli = parse(arguments)
        if command == "fit":
            return fit(cli)
        return evaluate(command, cli)
    except Stopped as stopped:
        print(f"dafw: {stopped}", file=sys.stderr)
        return 128 + int(stopped.signum)
    except NonFiniteLoss as error:
        print(f"dafw: error: {error}", file=sys.stderr)
        return 1


def complete(cli: DafwCLI) -> dict[str, Any]:
    """The whole configuration, as written to ``config.yaml``."""
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False, skip_link_targets=False))
    return config


def fit(cli: DafwCLI) -> int:
    """Trains or resumes, tests, and writes the result."""
    options: RunOptions = cli.config_init["run"]
    config = complete(cli)
    folder = Path(options.dir) if options.dir else run_directory(config, Path(options.root))
    if int(getattr(rank_zero_only, "rank", False) or 0):
        return _fit(cli, config, folder)
    if read_result(folder) is not None:
        print(f"done already: {folder / 'result.json'}")
        return 0
    with lock(folder):
        if read_result(folder) is not None:  # another process finished it in the meantime
            return 0
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return _fit(cli, config, folder)


def _fit(cli: DafwCLI, config: dict[str, Any], folder: Path) -> int:
    options: RunOptions = cli.config_init["run"]
    method, data = cli.model, cli.datamodule
    log = CsvLog(folder / "metrics.csv")
    tracker = wandb_logger(
        folder,
        mode=options.wandb,
        project=options.project or type(data).__name__,
        group=type(method).__name__,
        name=folder.name,
        run_id=identity(config),
        config=config,
    )
    checkpointing = Checkpointing(folder / "checkpoints", options.checkpoint_every, options.keep_checkpoints)
    clock = Clock()
    callbacks = [clock, progress_callback(), Stopping(checkpointing), checkpointing]
    trainer = cli.make_trainer(callbacks, [log, *([tracker] if tracker else [])], folder)
    refuse_oracle(trainer, options.allow_oracle)
    newest = next(iter(checkpoints(checkpointing.folder)), None)
    if newest is not None:
        log.forget_after(check_method(newest, type(method))["dafw"]["steps"])
    try:
        trainer.fit(method, datamodule=data, ckpt_path=newest, weights_only=True)
    except NonFiniteLoss as error:
        good = next(iter(checkpoints(checkpointing.folder)), None)
        kept = f"; the last good checkpoint is {good}" if good else "; no checkpoint had been written before"
        raise NonFiniteLoss(f"{error}{kept}") from error
    trainer.test(method, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        pictures = write_plots(method, data, folder) if options.plots else []
        result = write_result(trainer, method, data, config, folder, clock)
        if tracker is not None:
            track_result(tracker, folder, result, pictures)
        for name in data.target:
            print(f"{name}: {method.problem.primary} {result['test'][name][method.problem.primary]:.4f}")
        print(f"{folder / 'result.json'}")
    return 0


def refuse_oracle(trainer: pl.Trainer, allowed: bool) -> None:
    """Target labels must not choose a checkpoint or stop a run.

    Raises:
        UserError: if a callback monitors an ``oracle/`` value and that was not allowed.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.startswith("oracle/") and not allowed:
            raise UserError(
                f'{type(callback).__name__} monitors "{monitor}", which target labels decide: '
                "use val/source_accuracy, val/im, ... or say run.allow_oracle: true"
            )


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
    trainer = cli.make_trainer([progress_callback()], [], folder)
    if command == "predict":
        output = Path(cli.config_init["output"] or "predictions.csv")
        predicted = trainer.predict(cli.model, datamodule=cli.datamodule)
        write_predictions(predicted or [], cli.datamodule, output)
        print(output)
        return 0
    getattr(trainer, command)(cli.model, datamodule=cli.datamodule, verbose=False)
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name.partition('/dataloader_idx')[0]:<40} {float(value):.4f}")
    return 0
