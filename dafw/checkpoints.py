"""Reading checkpoints: never runs code from the file, says what is wrong with it."""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dafw.callbacks.checkpointing import checkpoints
from dafw.errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that this project wrote, on the CPU.

    Raises:
        UserError: if the file is missing, truncated, would run code, or is not one of ours; an older intact
            checkpoint beside it is named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated or no checkpoint{_older(path)}")
    if not _intact(path):
        raise UserError(f"{path} is damaged{_older(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} was refused: reading it could run code that came with the file") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged{_older(path)}") from error
    if not isinstance(content, dict) or "dafw" not in content or "state_dict" not in content:
        raise UserError(f"{path} was not written by dafw")
    return content


def _older(path: Path) -> str:
    for candidate in checkpoints(path.parent):
        if candidate.name != path.name and _intact(candidate):
            return f"; {candidate} is intact"
    return ""


def _intact(path: Path) -> bool:
    """Whether every checksum in the file holds, which reading tensors does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        return False


def check_classes(content: dict[str, Any], path: str | Path, classes: Sequence[str]) -> None:
    """Compares the classes that a checkpoint's outputs stand for, in their order, with those of the data.

    Raises:
        UserError: naming the first that differs: as many classes are not yet the same ones.
    """
    held = content["dafw"].get("classes") or classes
    for position, (theirs, ours) in enumerate(zip(held, classes, strict=False)):
        if theirs != ours:
            raise UserError(
                f'output {position} of {path} is class "{theirs}", but "{ours}" in the data: data.label_sets and '
                "class names must be those that it was trained with"
            )


def check_rule(content: dict[str, Any], path: str | Path, method: Any) -> None:
    """Compares the rule that a checkpoint's threshold was fitted for with that of ``method``.

    Raises:
        UserError: if ``method`` has no rule where the checkpoint has one, or would take another rule's threshold.
    """
    held, rule = content["dafw"]["method"]["init_args"].get("rejection"), method.rejection
    if held is None:
        return
    name = held["class_path"].rpartition(".")[2]
    if rule is None:
        raise UserError(f"{path} rejects by {name}: give model.rejection")
    if rule.threshold is None and name != type(rule).__name__:
        raise UserError(
            f"the threshold in {path} is of {name}, not of {type(rule).__name__}: give model.rejection.threshold"
        )


def check_method(path: str | Path, method: type) -> dict[str, Any]:
    """Reads a checkpoint for ``method``.

    Raises:
        UserError: if it holds another method.
    """
    content = read_checkpoint(path)
    held = content["dafw"]["method"]["class_path"]
    if held != f"{method.__module__}.{method.__qualname__}":
        raise UserError(f"{path} holds a {held.rpartition('.')[2]}, not a {method.__name__}")
    return content
