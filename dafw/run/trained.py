"""The model that an evaluation reads: the weights of a checkpoint, in the method of its run's configuration."""

from pathlib import Path
from typing import Any, NamedTuple

from dafw.checkpoints import check_classes, check_method, check_rule, first_fault
from dafw.errors import UserError
from dafw.run.config import DafwCLI, RunOptions, resolved_config
from dafw.run.given import run_folder, trained_checkpoint


class TrainedRun(NamedTuple):
    """A run whose method has the weights of a checkpoint.

    Attributes:
        folder: the run directory.
        path: the checkpoint.
        content: what it holds.
        config: the complete configuration.
    """

    folder: Path
    path: Path
    content: dict[str, Any]
    config: dict[str, Any]


def fill_from_checkpoint(cli: DafwCLI, command: str) -> TrainedRun:
    """Gives the method the weights of the checkpoint that ``command`` reads.

    Raises:
        UserError: if there is no checkpoint, or if it is of another method, other classes or another network.
    """
    options: RunOptions = cli.config_init["run"]
    config = resolved_config(cli)
    folder, path = run_folder(config), trained_checkpoint(config)
    cli.model.accept_changed_data = options.accept_changed_data
    if path is None:
        raise UserError(f"there is no checkpoint in {folder / 'checkpoints'}: train first, or give --ckpt_path")
    content = check_method(path, type(cli.model))
    check_classes(content["dafw"], path, cli.datamodule.known_names, cli.model.accept_changed_data)
    if command != "validate":  # a validation fits the threshold anew
        check_rule(content, path, cli.model)
    try:
        cli.model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this configuration: {first_fault(error)}") from error
    cli.model.comes_from(content["dafw"], str(path))
    return TrainedRun(folder, path, content, config)
