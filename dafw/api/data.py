"""The datamodule of a run directory. Reading one imports no module that the program has not imported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from dafw.errors import UserError, causes
from dafw.files import reading
from dafw.recording import may_name
from dafw.run.arguments import MODE, read
from dafw.run.config_errors import explain
from dafw.run.directory import CONFIG
from datamodules.base import DomainDataModule


def make_data(directory: Path) -> DomainDataModule:
    """The datamodule that the configuration of a run names, for evaluation: without a transform of training.

    Args:
        directory: the run directory.

    Raises:
        UserError: if there is no configuration, if it names a class whose module the program has not imported, or if
            its data cannot be had.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"there is no {path}, which says how the run prepares images: give data")
    try:
        with reading("the configuration", path):
            config = read(path.read_text(encoding="utf-8"))
        data = config["data"]
        arguments = dict(data["init_args"])
        named = [str(data["class_path"])]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, and says how the run prepares images: give data") from error
    if isinstance(arguments.get("augment"), dict):
        del arguments["augment"]
    for name in [*named, *class_paths(arguments)]:
        module = name.rpartition(".")[0]
        if not may_name(module):
            raise UserError(f"{path} names {name}: import {module} first, if you trust it")
    parser = ArgumentParser(exit_on_error=False, parser_mode=MODE)
    parser.add_subclass_arguments(DomainDataModule, "data")
    try:
        parsed = parser.parse_object({"data": {"class_path": named[0], "init_args": arguments}})
        made: DomainDataModule = parser.instantiate_classes(parsed).data
    except (ArgumentError, ValueError) as error:
        said = next((one for one in causes(error) if isinstance(one, UserError)), None) or explain(str(error), [])
        raise UserError(f"{path}: {said}") from error
    return made


def class_paths(value: Any) -> Iterator[str]:
    """The class paths within the arguments of a class."""
    if isinstance(value, dict):
        yield from [str(value["class_path"])] if "class_path" in value else []
        for item in value.values():
            yield from class_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from class_paths(item)
