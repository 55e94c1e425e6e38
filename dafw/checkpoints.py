"""Finds and reads checkpoints. Reading runs no code from the file, and an error names the file and its fault."""

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.samples import changed_samples

NAME = re.compile(r"step=(\d+)\.ckpt")
"""File name of a checkpoint. The group is its number of steps."""
FORM: dict[str, Any] = {
    "state_dict": dict,
    "dafw": {
        "method": {"class_path": str, "init_args": dict},
        "steps": int,
        "history": list,
        "record": {"unlogged": list, "latest": dict},
        "labelled": list,
        "classes": list,
        "samples": dict,
        "eval_network": str,
    },
}
"""What every checkpoint holds: by name the type of a value, or what a mapping holds."""
TO_GO_ON: dict[str, Any] = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "loops": {"fit_loop": dict},
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "run": {"threads": int, "sources": dict},
}
"""What a checkpoint holds beside :data:`FORM` if a training is to go on from it."""
LARGEST = 10**6
"""Largest whole number among a method's arguments in a checkpoint, unless it holds more weights than that."""
ACCEPT = "say --run.accept_changed_data true"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the one with the most steps first."""
    found = [(int(match[1]), path) for path in folder.glob("step=*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in a run directory or a folder of checkpoints; ``None`` without one."""
    return next(iter(checkpoints(folder / "checkpoints") or checkpoints(folder)), None)


def read_checkpoint(path: str | Path, to_go_on: bool = False) -> dict[str, Any]:
    """Reads a checkpoint of this project into the CPU's memory, and checks its form.

    Args:
        path: the file.
        to_go_on: whether a training is to go on from it, which needs more than its weights.

    Raises:
        UserError: if the file is missing or truncated, if reading it would run code, if another program or another
            version of this one wrote it, or if it asks for a larger method than it holds. The message on a damaged
            file names an older intact checkpoint in the same folder.
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
    fault = _fault(content, FORM | (TO_GO_ON if to_go_on else {}))
    if not fault and to_go_on and not content["optimizer_states"]:
        fault = "holds no state of an optimiser"
    if fault:
        raise UserError(f"{path} {fault}: it is incomplete, or another version of dafw wrote it{_older(path)}")
    if not all(isinstance(one, list) and len(one) == 2 for one in content["dafw"]["samples"].values()):
        raise UserError(f"{path} does not say in dafw.samples how many samples it was trained on")
    held = sum(value.numel() for value in content["state_dict"].values() if isinstance(value, Tensor))
    for name, number in _whole_numbers("", content["dafw"]["method"]["init_args"]):
        if abs(number) > max(LARGEST, held):
            raise UserError(f"{path} was refused: its {name} is {number}, and it holds {held} weights in all")
    return content


def _fault(content: Any, form: Mapping[str, Any], inside: str = "") -> str:
    """What a checkpoint lacks; empty if it has all parts."""
    for name, expected in form.items():
        full = f"{inside}{name}"
        if name not in content:
            return f"lacks {full}"
        kind = expected if isinstance(expected, type) else dict
        if not isinstance(content[name], kind):
            return f"has a {type(content[name]).__name__} as {full}"
        if kind is not expected and (found := _fault(content[name], expected, f"{full}.")):
            return found
    return ""


def _whole_numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """The whole numbers within nested values, with their names."""
    if isinstance(value, int):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            inner = f"{name}.{key}" if name and key not in ("class_path", "init_args") else name or str(key)
            yield from _whole_numbers(inner, one)


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


def check_classes(held: Mapping[str, Any], path: str | Path, classes: Sequence[str], accepted: bool = False) -> None:
    """Checks that the outputs of a checkpoint stand for the classes of the data, in the same order.

    Args:
        held: what the checkpoint says beside its weights.
        path: its file.
        classes: the names of the data's classes.
        accepted: whether other names for as many classes are meant.

    Raises:
        UserError: naming the first class that differs.
    """
    then = held["classes"] or classes
    if len(then) != len(classes):
        more, fewer, what = (classes, then, "new") if len(classes) > len(then) else (then, classes, "gone")
        name = next(one for one in more if one not in fewer)
        raise UserError(f'{path} predicts {len(then)} classes, but the data has {len(classes)}: "{name}" is {what}')
    for position, (theirs, ours) in enumerate(zip(then, classes, strict=True)):
        if theirs != ours and not accepted:
            raise UserError(
                f'output {position} of {path} is class "{theirs}", but "{ours}" in the data: data.label_sets and '
                f"class names must be those that it was trained with; if another name is meant, {ACCEPT}"
            )


def check_samples(held: Mapping[str, Any], path: str | Path, samples: Mapping[str, Sequence[Any]]) -> None:
    """Checks that the domains have the samples that they had when a checkpoint was written.

    Args:
        held: what the checkpoint says beside its weights.
        path: its file.
        samples: the samples of the data now, see :func:`dafw.data.samples.summarise`. Those of a domain that the
            checkpoint does not know are not compared.

    Raises:
        UserError: naming the first domain whose samples changed, and how many it had and has.
    """
    if said := changed_samples(held["samples"], path, samples):
        raise UserError(f"{said}; if that is meant, {ACCEPT}")


def check_finite(state: Mapping[str, Tensor], path: str | Path, names: Iterable[str]) -> None:
    """Checks that the weights of these names are finite.

    Raises:
        UserError: naming the first that is not.
    """
    for name in names:
        if name in state and not state[name].isfinite().all():
            raise UserError(f'the weight "{name}" in {path} is NaN or infinite{_older(Path(path))}')


def first_fault(error: RuntimeError) -> str:
    """The first weight that ``load_state_dict`` complains about."""
    lines = str(error).splitlines()
    return (lines[1] if len(lines) > 1 else lines[0]).strip()


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


def check_method(path: str | Path, method: type, to_go_on: bool = False) -> dict[str, Any]:
    """Reads a checkpoint and checks that it holds the class ``method``.

    Args:
        path: the file.
        method: the class.
        to_go_on: see :func:`read_checkpoint`.

    Raises:
        UserError: if the file cannot be read, see :func:`read_checkpoint`, or if it holds another method.
    """
    content = read_checkpoint(path, to_go_on)
    held = content["dafw"]["method"]["class_path"]
    if held != f"{method.__module__}.{method.__qualname__}":
        raise UserError(f"{path} holds a {held.rpartition('.')[2]}, not a {method.__name__}")
    return content
