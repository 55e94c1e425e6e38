"""Learning rate, momentum and weight decay of single parts of a model: its backbone, bottleneck, head, critic."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dafw.errors import UserError, choose
from dafw.ranges import Range, check_ranges

Parts = dict[str, dict[str, float]]
"""By the name of a part, what differs for it: ``{"backbone": {"momentum": 0.0}, "critic": {"lr": 10.0}}``.

``lr`` is a multiple of the method's learning rate. ``momentum`` and ``weight_decay`` take the place of the method's.
"""
OPTIONS = {
    "lr": Range("must be 0 or more", 0),
    "momentum": Range("must be at least 0 and below 1", 0, 1, below=True),
    "weight_decay": Range("must be 0 or more", 0),
}


def check_parts(parts: Parts) -> None:
    """Checks all but the names of the parts.

    Raises:
        UserError: for an unknown option, or a number that is out of range.
    """
    for name, options in parts.items():
        for option in options:
            choose(f"option of model.parts.{name}", option, OPTIONS)
        check_ranges(f"model.parts.{name}", options, OPTIONS)


def split_groups(
    groups: Sequence[dict[str, Any]], parts: Parts, named: Mapping[str, Sequence[nn.Parameter]], lr: float
) -> list[dict[str, Any]]:
    """Gives each part a group of its own, before the rest of the group that it was in.

    Args:
        groups: parameter groups of an optimiser.
        parts: see :data:`Parts`.
        named: by the name of each part that there is, its parameters.
        lr: the method's learning rate.

    Raises:
        UserError: for a part that does not exist, or of which no parameter is in any group.
    """
    found = list(groups)
    for name, options in parts.items():
        inside = set(map(id, named[choose("part in model.parts", name, named)]))
        own = options | ({"lr": lr * options["lr"]} if "lr" in options else {})
        if not inside & {id(parameter) for group in found for parameter in group["params"]}:
            raise UserError(f"model.parts names {name}, of which this method trains nothing")
        split: list[dict[str, Any]] = []
        for group in found:
            taken = [parameter for parameter in group["params"] if id(parameter) in inside]
            rest = [parameter for parameter in group["params"] if id(parameter) not in inside]
            split += [{**group, "params": taken, **own}] if taken else []
            split += [{**group, "params": rest}] if rest else []
        found = split
    return found
