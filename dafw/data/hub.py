"""Models and tokenizers of Hugging Face's transformers, from a folder, the cache of this machine, or the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from dafw.errors import UserError, sentence
from dafw.files import user_path

#: How the name of a backbone begins that is an encoder of transformers.
PREFIX = "transformers:"


def encoder_of(backbone: object) -> str | None:
    """The name or folder of the encoder that a backbone names; ``None`` if it names something else."""
    return backbone.removeprefix(PREFIX) if isinstance(backbone, str) and backbone.startswith(PREFIX) else None


def transformers(what: str) -> ModuleType:
    """The package.

    Args:
        what: that needs it, for the error.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise UserError(f'{what} needs the package transformers: pip install "dafw[text]"') from error


def pretrained(kind: str, name: str, key: str, **options: Any) -> Any:
    """What ``from_pretrained`` of a class of transformers makes. No code that comes with a model is run.

    Args:
        kind: the class, such as ``AutoModel``.
        name: a folder, or a model's name on the hub. The hub is asked only for what this machine has not yet.
        key: the configuration key that gave the name, for errors.
        options: further arguments.

    Raises:
        UserError: if transformers is not installed, there is no such folder or model, it cannot be read, or the hub
            cannot be reached.
    """
    maker = getattr(transformers(f"{key} {name}"), kind)
    folder = user_path(name)
    if folder.is_dir():
        if not os.access(folder / "config.json", os.R_OK):
            raise UserError(f"the folder {folder} ({key}) holds no model: it has no file config.json that can be read")
        with _quiet():
            return _read(maker, str(folder), f"the folder {folder} ({key})", options)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"the folder {name} ({key}) does not exist")
    with _quiet():
        try:
            return maker.from_pretrained(name, local_files_only=True, **options)
        except (OSError, ValueError):  # it is not in the cache
            pass
        if not hub_is_reachable():
            raise UserError(
                f"{name} ({key}) is no folder, this machine's cache of the hub does not have it, and the hub cannot be "
                "reached: give the folder of a model"
            )
        return _read(maker, name, f"{name} ({key}), which is no folder here,", options)


def _read(maker: Any, name: str, what: str, options: dict[str, Any]) -> Any:
    try:
        return maker.from_pretrained(name, **options)
    except Exception as error:  # a damaged file, an unknown architecture and a missing model fail in their own ways
        if isinstance(error, MemoryError):
            raise
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{what} cannot be read by transformers ({sentence(Exception(first))})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, transformers shows no progress and says no more than its errors."""
    logs = import_module("transformers.utils.logging")
    before, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(before)
        if bar:
            logs.enable_progress_bar()


def hub_is_reachable() -> bool:
    """Asks the hub once. Its own client would ask a hub that does not answer for a minute and a half."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        return bool(get_session().head(constants.ENDPOINT, timeout=5).status_code < 500)
    except Exception:  # of whatever library makes the request
        return False
