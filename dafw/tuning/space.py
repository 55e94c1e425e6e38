"""The search space: keys of a configuration, each with a range or with choices."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dafw.errors import UserError, choose, nearest
from dafw.files import user_path
from dafw.plain_yaml import load_yaml

SECTIONS = ("model", "data", "trainer")
FORM = "KEY=LOW:HIGH, KEY=LOW:HIGH:log, KEY=LOW:HIGH:linear or KEY=A,B,C"
Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Dimension:
    """One searched key.

    Attributes:
        key: a key of the configuration as on the command line of ``dafw fit``: ``model.lr``, ``data.batch_size``.
        low: least value of a range.
        high: greatest value of a range.
        log: whether the range is sampled in log scale.
        choices: the values of a dimension that is no range.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Scalar, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """Its choices, or its least and its greatest value."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        """The dimension in the form of ``--space``."""
        if self.choices:
            return f"{self.key}={','.join(map(written, self.choices))}"
        return f"{self.key}={self.low}:{self.high}:{'log' if self.log else 'linear'}"


def written(value: Any) -> str:
    """A value as YAML on one line, for example ``0.1``, ``true`` or ``joint``."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("\n").removesuffix("\n...")


def make_range(key: str, low: Any, high: Any, scale: str = "") -> Dimension:
    """A range. Its scale is logarithmic if it says so, or if it is of positive floats and spans a factor of 10.

    Raises:
        UserError: if the ends are no finite numbers in order, or a log scale starts at 0 or below.
    """
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"the range of {key} must go from one number to a greater one, not from {low} to {high}")
    whole = isinstance(low, int) and isinstance(high, int)
    low, high = (low, high) if whole else (float(low), float(high))
    log = scale == "log" or (not scale and not whole and low > 0 and high / low >= 10)
    if log and low <= 0:
        raise UserError(f"the range of {key} is in log scale: it must start above 0, not at {low}")
    return Dimension(key, low, high, log)


def make_choices(key: str, values: Iterable[Any]) -> Dimension:
    """A dimension of choices.

    Raises:
        UserError: if there is none, or one is a list or a mapping.
    """
    choices = tuple(values)
    if not choices or not all(isinstance(value, Scalar) for value in choices):
        raise UserError(f"the choices of {key} must be numbers, words, true or false, not {list(choices)}")
    return Dimension(key, choices=choices)


def method_space(space: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of a method's ``search_space``. A tuple is a range, a list holds choices."""
    return [
        make_range(f"model.{name}", *value) if isinstance(value, tuple) else make_choices(f"model.{name}", value)
        for name, value in space.items()
    ]


def parse_space(given: str) -> list[Dimension]:
    """One ``--space``: ``KEY=...``, or a YAML file of keys and the same written behind them (choices also as a list).

    Raises:
        UserError: if it is neither.
    """
    key, equals, text = given.partition("=")
    if equals:
        return [_dimension(key.strip(), text)]
    path = user_path(given)
    if not path.is_file():
        raise UserError(f'--space takes {FORM}, or a file: there is no file "{given}"')
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # as text: 1:30 is no 90 here
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} must hold keys with ranges or choices, as in lr: 0.001:0.1")
    return [_dimension(str(key), value) for key, value in content.items()]


def _dimension(key: str, value: Any) -> Dimension:
    if not key or not value or isinstance(value, dict):
        raise UserError(f'--space takes {FORM}, not "{key}={value}"')
    name = key if "." in key else f"model.{key}"
    if isinstance(value, list):
        return make_choices(name, map(_scalar, value))
    parts = [part.strip() for part in value.split(":")]
    if len(parts) == 1:
        return make_choices(name, map(_scalar, value.split(",")))
    scale = parts[2] if len(parts) == 3 else ""
    if len(parts) > 3 or scale not in ("", "log", "linear"):
        raise UserError(f'--space takes {FORM}, not "{key}={value}"')
    return make_range(name, _scalar(parts[0]), _scalar(parts[1]), scale)


def _scalar(text: Any) -> Any:
    try:
        value = load_yaml(text) if isinstance(text, str) else text
    except yaml.YAMLError:
        return text
    try:
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a word
    except ValueError:
        return value


def whole_space(own: Sequence[Dimension], given: Sequence[Dimension], fixed: Iterable[str]) -> tuple[Dimension, ...]:
    """The dimensions of a search: the method's own without those that the command line fixes, and the given ones.

    Args:
        own: of the method.
        given: by ``--space``.
        fixed: keys with a value on the command line.

    Raises:
        UserError: if a key is both fixed and given, or nothing is left to search.
    """
    values = set(fixed)
    for dimension in given:
        if dimension.key in values:
            raise UserError(f"{dimension.key} has a value and a --space: leave one of them out")
    space = {dimension.key: dimension for dimension in own if dimension.key not in values}
    space |= {dimension.key: dimension for dimension in given}
    if not space:
        raise UserError("there is nothing to search: the method has no search space that is left, so give --space")
    return tuple(space.values())


def locate(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The place of a key in a complete configuration, which has the arguments of a class under ``init_args``.

    Raises:
        UserError: if there is no such key, naming the nearest.
    """
    words = key.split(".")
    choose("first word of --space", words[0], SECTIONS)
    path: list[str] = []
    level: Any = config
    for position, word in enumerate(words):
        if isinstance(level, Mapping) and "class_path" in level:
            if word in ("init_args", "class_path"):
                raise UserError(f'"{key}" names no argument: write it as {".".join([*words[:position], "KEY"])}')
            path.append("init_args")
            level = level.get("init_args") or {}
        if not isinstance(level, Mapping):
            raise UserError(f'unknown key "{key}": {".".join(words[:position])} has no keys')
        if word not in level:
            raise UserError(f'unknown key "{key}": {nearest(word, map(str, level))}'.rstrip(": "))
        path.append(word)
        level = level[word]
    if isinstance(level, Mapping):
        raise UserError(f'"{key}" has keys of its own: name one of them, as in {key}.{_first(level)}')
    return tuple(path)


def _first(level: Mapping[str, Any]) -> str:
    return str(next(iter(level.get("init_args") or level), "KEY"))


def place(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a complete configuration with the values of some keys."""
    placed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *parents, last = locate(config, key)
        level = placed
        for parent in parents:
            level = level[parent]
        level[last] = value
    return placed


def overlay(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of some keys with their classes, as a file for ``dafw fit --config``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        source: Any = config
        level = result
        *parents, last = locate(config, key)
        for parent in parents:
            source = source[parent]
            if parent != "init_args" and "class_path" in source:
                level.setdefault(parent, {"class_path": source["class_path"]})
            level = level.setdefault(parent, {})
        level[last] = value
    return result
