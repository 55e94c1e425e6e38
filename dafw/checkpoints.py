"""Finds and reads checkpoints. Reading runs no code from the file, and an error names the file and its fault."""

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dafw.errors import UserError

NAME = re.compile(r"step=(\d+)\.ckpt")
"""File name of a checkpoint. The group is its number of steps."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the one with the most steps first."""
    found = [(int(match[1]), path) for path in folder.glob("step=*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this project into the CPU's memory.

    Raises:
        UserError: if the file is missing or truncated, if reading it would run code, or if another program wrote it.
            The message names an older intact checkpoint in the same folder.
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
    """Whether every checksum in the file is right. ``torch.load`` does not check them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        return False


def check_classes(content: dict[str, Any], path: str | Path, classes: Sequence[str]) -> None:
    """Checks that the outputs of a checkpoint stand for the classes of the data, in the same order.

    Raises:
        UserError: naming the first class that differs.
    """
    held = content["dafw"].get("classes") or classes
    for position, (theirs, ours) in enumerate(zip(held, classes, strict=False)):
        if theirs != ours:
            raise UserError(
                f'output {position} of {path} is class "{theirs}", but "{ours}" in the data: data.label_sets and '
                "class names must be those that it was trained with"
            )


def check_rule(content: dict[str, Any], path: str | Path, method: Any) -> None:
    """Checks that ``method`` rejects samples by the rule that the checkpoint's threshold was fitted for.

    Raises:
        UserError: if the checkpoint has a rule and ``method`` has none or another one without its own threshold.
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
    """Reads a checkpoint and checks that it holds the class ``method``.

    Raises:
        UserError: if the file cannot be read, see :func:`read_checkpoint`, or if it holds another method.
    """
    content = read_checkpoint(path)
    held = content["dafw"]["method"]["class_path"]
    if held != f"{method.__module__}.{method.__qualname__}":
        raise UserError(f"{path} holds a {held.rpartition('.')[2]}, not a {method.__name__}")
    return content
