"""Merging of configurations, and ``--set key=value``."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dafw.errors import UserError, choose
from dafw.plain_yaml import load_yaml

SECTIONS = ("model", "data", "trainer", "run")
"""The parts of a configuration that a table may set. The seed belongs to the table itself."""
OBJECT_KEYS = ("class_path", "init_args", "dict_kwargs")
"""The keys of a part that is a class."""


def merge(base: Mapping[str, Any], *overlays: Mapping[str, Any]) -> dict[str, Any]:
    """A new configuration in which later overlays win.

    Mappings merge key by key, everything else (lists too) is replaced. A mapping that names another ``class_path`` than
    the one below it replaces it whole, because the arguments of one class are not those of another.
    """
    merged = dict(base)
    for overlay in overlays:
        for key, value in overlay.items():
            below = merged.get(key)
            if isinstance(below, Mapping) and isinstance(value, Mapping) and not _other_class(below, value):
                merged[key] = merge(below, value)
            else:
                merged[key] = merge({}, value) if isinstance(value, Mapping) else value
    return merged


def _other_class(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    paths = below.get("class_path"), above.get("class_path")
    return None not in paths and paths[0] != paths[1]


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["trainer.max_steps=5", "model.weight=0.5"]`` as one overlay.

    Values are YAML. The first word is one of :data:`SECTIONS`; an argument of the model or of the data may be named
    directly (``model.weight`` for ``model.init_args.weight``), as on the command line of ``dafw fit``.

    Raises:
        UserError: if a setting has no ``=``, names no key, or its value is not YAML.
    """
    overlay: dict[str, Any] = {}
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f'--set takes key=value, as in trainer.max_steps=100, not "{setting}"')
        choose("first word of --set", keys[0], SECTIONS)
        if len(keys) == 1:
            raise UserError(f'--set "{setting}" names a whole section: name a key in it, as in {keys[0]}.key=value')
        if keys[0] in ("model", "data") and keys[1] not in OBJECT_KEYS:
            keys.insert(1, "init_args")
        try:
            nested: Any = load_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f'the value in --set "{setting}" is not YAML') from error
        for key in reversed(keys):
            nested = {key: nested}
        overlay = merge(overlay, nested)
    return overlay
