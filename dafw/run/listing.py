"""The samples that the data of a finished run has now. No network is made."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning.cli import LightningArgumentParser

from dafw.data.trained import TrainedModel, made_for
from dafw.errors import UserError, sentence
from dafw.run.arguments import MODE
from dafw.run.config_errors import find_class
from dafw.run.given import trained_classes
from dafw.samples import Samples
from datamodules.base import DomainDataModule


def list_samples(config: Mapping[str, Any], folder: Path) -> dict[str, Samples]:
    """Lists the files of the data of a run. Nothing is said of them.

    Args:
        config: of the run, as :func:`dafw.run.entry.execute` takes it.
        folder: its directory. A method without a source finds its classes in the checkpoint there.

    Returns:
        What :meth:`~dafw.data.served.ServedDomains.samples` gives for ``fit``.

    Raises:
        UserError: if the data is not there, or is wrong.
    """
    method = find_class(_full(config["model"]["class_path"], "dafw.methods"))
    path = _full(config["data"]["class_path"], "datamodules")
    run = {**config, "model": {"init_args": {}, **config["model"]}, "run": {"dir": str(folder)}}
    model = None if method.setting.sees_source else TrainedModel(lambda: trained_classes(run))
    arguments = {**config["data"].get("init_args", {}), "seed": config["seed_everything"]}
    parser = LightningArgumentParser(parser_mode=MODE, exit_on_error=False)
    parser.add_lightning_class_args(DomainDataModule, "data", subclass_mode=True)
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)  # its name before jsonargparse 4.49
    with _silence(), nullcontext() if model is None else made_for(model):
        try:
            parsed = parser.parse_object({"data": {"class_path": path, "init_args": arguments}})
            data: DomainDataModule = instantiate(parsed)["data"]
        except (ArgumentError, ValueError) as error:
            raise UserError(sentence(error)) from error
        data.default_request = method.asked_samples(run["model"]["init_args"])
        data.setup("fit")
        return data.samples("fit")


def _full(name: str, package: str) -> str:
    """A class path; that of a class of ``package`` may be its name alone."""
    return name if "." in name else f"{package}.{name}"


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what a datamodule logs of its samples to itself: the runs have said it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
