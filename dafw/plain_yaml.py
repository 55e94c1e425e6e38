"""YAML of plain values: null, true, false, numbers, words, lists and mappings."""

from itertools import accumulate
from typing import Any

import yaml

MOST = 1_000_000
"""Values that a text may stand for, with its aliases written out."""
DEEPEST = 100
"""Levels of lists and mappings in each other. What Python itself can bear differs between its versions."""
TOO_DEEP = "nested too deeply"


class _Loader(yaml.SafeLoader):
    """Reads a date as a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: if it is not YAML, is nested too deeply, contains itself, or holds a value that is not plain.
    """
    try:
        value = yaml.load(text, _Loader)
        _count(value, 0)
    except RecursionError:
        raise yaml.YAMLError(f"its values are {TOO_DEEP}") from None
    except ValueError as error:  # a number with thousands of digits
        raise yaml.YAMLError(str(error)) from error
    return value


def bracket_depth(text: str) -> int:
    """How many brackets and braces of a text are open at once, at most."""
    steps = ((char in "[{") - (char in "]}") for char in text)
    return max(accumulate(steps, initial=0))


def _count(value: Any, found: int, depth: int = 0) -> int:
    """Adds the number of values in ``value``, which lies below ``depth`` others, to ``found``."""
    if depth > DEEPEST:
        raise yaml.YAMLError(f"its values are {TOO_DEEP}")
    found += 1
    if found > MOST:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST:,} values")
    if isinstance(value, dict):
        for key, item in value.items():
            found = _count(item, _count(key, found, depth + 1), depth + 1)
    elif isinstance(value, list):
        for item in value:
            found = _count(item, found, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise yaml.YAMLError(f"{value!r} is a {type(value).__name__}, which is no plain value: write it as a word")
    return found
