"""The configuration of a run. LightningCLI parses and instantiates it, and a mistake is one sentence."""

import logging
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

import dafw.methods  # so that short names of methods resolve
import datamodules
from dafw.callbacks import Lines, progress_callbacks
from dafw.data.trained import TrainedModel, made_for
from dafw.errors import UserError, causes, sentence
from dafw.files import trouble
from dafw.lightning_adapter import plain_config
from dafw.nn.weights import without_weights
from dafw.plain_yaml import TOO_DEEP
from dafw.ranges import check_ranges
from dafw.run.arguments import MODE, SERVING, add_served, of_files, with_text_names
from dafw.run.checks import check_trainer_arguments
from dafw.run.config_errors import broken_file, check_augment, check_constructor, check_files, explain, find_class
from dafw.run.given import import_backbone, trained_checkpoint, trained_classes
from dafw.run.loggers import WandbMode
from dafw.run.networks import with_cloud, with_network
from dafw.run.plain_weights import take_plain_weights
from dafw.run.presets import with_presets
from dafw.run.pretrained import name_tags
from dafw.run.sizes import follow_size
from dafw.run.threads import THREADS
from dafw.run.tokenizer import follow_encoder
from dafw.selection import Validator
from datamodules.base import DomainDataModule

_ = [getattr(datamodules, name) for name in datamodules.__all__]  # so that short names of datamodules resolve


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
        plots: write embedding, confusion matrix and curves. ``samples`` leaves out the curves, which a table's page
            draws itself.
        threads: number of threads of each process; what torch takes by default. Another number changes rounding.
        rerun: make a finished run again. Its result and its checkpoints are removed first.
        validators: further label-free validators, which each validation computes, as class paths.
        allow_oracle: allow a callback to monitor what target labels say.
        accept_changed_data: accept class names or samples that changed since the checkpoint was written.
    """

    root: str = "runs"
    dir: str | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    wandb: WandbMode = "offline"
    project: str | None = None
    plots: bool | Literal["samples"] = True
    threads: int | None = None
    rerun: bool = False
    validators: list[Validator] = field(default_factory=list)
    allow_oracle: bool = False
    accept_changed_data: bool = False


class DafwCLI(LightningCLI):
    """LightningCLI with the links, defaults and run options of this project. It only parses and instantiates.

    Args:
        arguments: of the command.
        command: ``fit``, ``validate``, ``test``, ``predict`` or ``estimate``.
    """

    def __init__(self, arguments: list[str], command: str = "fit") -> None:
        self.command = command
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
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": f"dafw {self.command}",
                "parser_mode": MODE,
            },
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning's, but a seed is a number. One that Lightning draws would not be the one that a run records."""
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=self.seed_everything_default,
            help="seed of the weights, the sample order and the augmentation",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with the default network if none is given. A stream is passed once unless something else is said."""
        arguments = with_network(parser, with_cloud(list(args)))
        super().parse_arguments(parser, arguments)
        setting = getattr(find_class(self.config["model"]["class_path"]), "setting", None)
        if setting is not None and setting.streams_target:
            parser.set_defaults({"trainer.max_epochs": 1})
            super().parse_arguments(parser, arguments)
        follow_size(self.config, arguments)
        follow_encoder(self.config)
        take_plain_weights(self.config)
        for key, value in list(self.config.items()):
            if value == "None":  # what the parser makes of null on the command line for a nested "str | None"
                self.config[key] = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run options. Links arguments: the datamodule tells the method its numbers of classes and sources."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.num_sources", "model.init_args.num_sources", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.add_argument("--run", type=RunOptions, default=RunOptions())
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to evaluate")
        parser.add_argument("--output", type=str | None, default=None, help="where test or predict writes its file")
        if self.command in SERVING:
            add_served(parser, self.command)

    def before_instantiate_classes(self) -> None:
        """Refuses arguments without a class, since the parser would make the abstract base class.

        timm's tags are named when the arguments are known to be readable. The number of threads is set here, since
        initial weights may depend on it.
        """
        threads = self.config["run"]["threads"]
        check_ranges("run", {"threads": threads}, {"threads": THREADS})
        if threads is not None:
            torch.set_num_threads(threads)
        for key in ("model", "data"):
            owner = find_class(self.config[key]["class_path"])
            if owner is DomainDataModule or getattr(owner, "is_abstract", False):
                raise UserError(f"{key} must be given")
            check_constructor(key, self.config[key]["class_path"], self.config[key]["init_args"])
        name_tags(self.config)
        check_augment(self.config["data"]["init_args"].get("augment"))
        check_trainer_arguments(self.config["trainer"], self.config["data"]["init_args"])

    def instantiate_classes(self) -> None:
        """Makes the method and the data, and gives the method the further validators.

        A checkpoint that is evaluated fills the network, and no other file of weights is read. What is known of the
        checkpoint's classes replaces the files of the sources, where these are not needed.
        """
        self._instantiate()
        self.model.evaluator.add_validators(self.config_init["run"].validators)

    def _instantiate(self) -> None:
        setting = getattr(find_class(self.config["model"]["class_path"]), "setting", None)
        needs_source = self.command not in SERVING and (setting is None or setting.sees_source)
        if self.command == "fit" and needs_source:
            super().instantiate_classes()
            return
        config = resolved_config(self)
        model = None if needs_source else TrainedModel(lambda: trained_classes(config), not of_files(config))
        filled = self.command != "fit" and trained_checkpoint(config) is not None
        if filled:
            import_backbone(config)
        with made_for(model), without_weights() if filled else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Keeps the arguments. The trainer is made when the run directory is known."""
        self.trainer_arguments = kwargs
        return None  # type: ignore[return-value]

    def make_trainer(
        self, callbacks: list[pl.Callback], loggers: list[Any], folder: Path, lines: bool = False
    ) -> pl.Trainer:
        """The trainer with the callbacks and loggers of this run and those of the user.

        Args:
            callbacks: of this run.
            loggers: of this run.
            folder: the run directory.
            lines: whether lines say what the run is and how its training goes.
        """
        config = dict(self.config_init["trainer"])
        own = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
        config["logger"] = loggers + [logger for logger in own if logger not in (None, False, True)]
        config["default_root_dir"] = str(folder)
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]  # a class path alone is no list
        theirs = any(isinstance(callback, ProgressBar) for callback in given)
        title = f"{type(self.model).__name__} on {self.datamodule.task}, seed {self.config['seed_everything']}"
        bar = not theirs and config["enable_progress_bar"] is not False
        progress = progress_callbacks(Lines(title, str(folder)) if lines else None, bar)
        config["enable_progress_bar"] = theirs
        config["callbacks"] = [*given, *callbacks, *progress]
        try:
            return pl.Trainer(**config)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"trainer: {sentence(error)}") from error

    def use_one_device(self) -> None:
        """Makes the next trainer run in one process, on an accelerator that is there."""
        trainer = self.config_init["trainer"]
        there = trainer["accelerator"] not in ("gpu", "cuda") or torch.cuda.is_available()
        changes = {"devices": 1, "num_nodes": 1, "strategy": "auto", **({} if there else {"accelerator": "auto"})}
        for key, value in changes.items():
            trainer[key] = value


def with_signed_names(arguments: list[str]) -> list[str]:
    """Writes ``--data.target -90%`` as ``--data.target=-90%``, since ``-90%`` would pass for an option."""
    keys = [f"--data.{init_args}{end}" for init_args in ("", "init_args.") for end in ("source", "target")]
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in keys and argument.startswith("-") and not argument.startswith("--"):
            joined[-1] = f"{joined[-1]}={argument}"
        else:
            joined.append(argument)
    return joined


def parse(arguments: list[str], command: str = "fit") -> DafwCLI:
    """Parses and instantiates. A method without a network gets ``Network()``: the MNIST network of the DANN paper.

    Args:
        arguments: of the command.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: for a wrong key, value, class or path.
    """
    silence_lightning()
    arguments = with_presets(with_text_names(with_signed_names(arguments)))
    for key, source in (
        ("data.seed", "seed_everything"),
        ("model.num_classes", "the datamodule"),
        ("model.num_sources", "the datamodule"),
    ):
        short = {f"--{key}", f"--{key.replace('.', '.init_args.')}"}
        if any(argument.partition("=")[0] in short for argument in arguments):
            raise UserError(f"{key} cannot be given: it comes from {source}")
    argv, sys.argv = sys.argv, sys.argv[:1]
    check_files(arguments)
    try:
        return DafwCLI(arguments, command)
    except ArgumentError as error:
        raise _user_error(error) or UserError(explain(str(error), arguments)) from error
    except RecursionError as error:
        raise UserError(f"a value on the command line is {TOO_DEEP}") from error
    except ValueError as error:
        found = [str(cause) for cause in causes(error) if isinstance(cause, ValueError)]
        raise _user_error(error) or UserError(broken_file(arguments) or " ".join(found[-1].split())) from error
    finally:
        sys.argv = argv


def _user_error(error: BaseException) -> UserError | None:
    """What the user is told if an error of the user, of the disk or of the memory caused an error of the parser."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ModuleNotFoundError) and "Neither `tensorboard`" in str(cause):
            return UserError('TensorBoardLogger needs the package tensorboard: pip install "dafw[tensorboard]"')
        if isinstance(cause, OSError) and (said := trouble(cause)):
            return UserError(said)
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and "alloc" in str(cause)):
            return UserError("the memory does not suffice for the network and the method as they are configured")
    return None


def silence_lightning() -> None:
    """Silences messages of Lightning that no user can act on."""
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
        ".*Total length of `list` across ranks is zero.*",
        ".*LeafSpec.*",
        ".*all_gather is deprecated.*",
        ".*broadcast_buffers. is deprecated.*",
        ".*custom batch sampler `ShardSampler`.*",
        "(?s).*does not round-trip.*",
        ".*smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def resolved_config(cli: DafwCLI) -> dict[str, Any]:
    """The whole configuration, as written to ``config.yaml``, with the number of threads.

    That one command accepts changed data, or makes a finished run again, is not kept.
    """
    config = plain_config(cli)
    config["run"] |= {"accept_changed_data": False, "rerun": False}
    if config["run"]["threads"] is None:
        config["run"]["threads"] = torch.get_num_threads()
    return config
