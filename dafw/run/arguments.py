"""Names of domains and classes on the command line and in files: the parser gets them as text, whatever they look like.

The parser reads values as YAML, where ``010`` is the number 8 and ``no`` is false. It finds out too late that a name is
wanted.
"""

import json
import re
from copy import deepcopy
from functools import lru_cache
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from dafw.errors import UserError
from dafw.names import LISTS, NAMES, quoted, value_of

MODE = "names"
"""The parser's mode in which :func:`read` loads files and values."""
SERVING = ("predict", "estimate")
"""The commands that serve images without labels."""
_PLACES = {
    f"--data.{inside}{key}": tuple(key.split("."))
    for inside in ("", "init_args.")
    for key in (*NAMES, "label_sets", *(f"label_sets.{role}" for role in LISTS))
}


def add_serving_arguments(parser: ArgumentParser, command: str) -> None:
    """Adds which images a command serves, and for ``estimate`` which other runs see them."""
    parser.add_argument("--images", type=str, nargs="+", help="files, or folders of images, instead of the targets")
    parser.add_argument(
        "--split",
        type=Literal["test", "all"] | None,
        default=None,
        help="what of a target is served; by default its test split, and all of a target without labels",
    )
    if command == "estimate":
        parser.add_argument("--with", type=str, nargs="+", help="other runs or checkpoints, for agreement")


def with_text_names(arguments: list[str]) -> list[str]:
    """Writes ``--data.source [010,no]`` as ``--data={"init_args": {"source": ["010", "no"]}}``.

    So are all names of domains and classes. A name is the text between the commas of a list in brackets, or all of a
    value without brackets. A name that has a comma or brackets stands in quotes inside of a list.

    Raises:
        UserError: for a name that is not UTF-8.
    """
    found, rest = [], iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        given = next(rest, None) if key in _PLACES and not equals else value
        if key not in _PLACES or given is None:
            found.append(argument)
        elif (named := _named(_PLACES[key], given)) is not None:
            found.append(f"--data={json.dumps({'init_args': named})}")
        else:
            found += [argument] if equals else [argument, given]
    return found


def _named(place: tuple[str, ...], given: str) -> dict[str, Any] | None:
    """The value as an argument of the datamodule; ``None`` if it is no name, which the parser judges."""
    try:
        value = value_of(place[-1], given)
    except yaml.YAMLError:
        value = None
    if not given.isascii() and given.encode("utf-8", "replace").decode() != given:
        raise UserError(f"data.{'.'.join(place)} has a name that is not UTF-8: rename its folder")
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if place[0] in NAMES and not (names and given.lstrip().startswith("[")):
        value = _alone(given)
    elif not names and not isinstance(value, dict):
        return None
    for key in reversed(place):
        value = {key: value}
    return dict(value)


def _alone(name: str) -> str | list[str]:
    """A single name, in a list if the parser would take it for a list."""
    return [name] if re.match(r"\s*(\[|-(\s|$))", name) else name


def read(text: str) -> Any:
    """What a text of YAML holds, with names as text. The parser reads most of its texts several times."""
    return deepcopy(_read(text))


@lru_cache(maxsize=1024)
def _read(text: str) -> Any:
    return _with_lists(get_loader("yaml")(quoted(text)))


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _alone(item) if key in NAMES and isinstance(item, str) else _with_lists(item)
        for key, item in value.items()
    }


set_loader(MODE, read, (yaml.YAMLError,))
