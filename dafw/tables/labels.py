"""Whether target labels take part in a run, read from its configuration."""

import json
from collections.abc import Mapping
from typing import Any

NO = ("", "false", "no", "off", "null", "~")


def trains_on_target_labels(config: Mapping[str, Any]) -> bool:
    """Whether target labels train the run (``data.oracle``)."""
    data = config.get("data") or {}
    arguments = [part for key in ("init_args", "dict_kwargs") if isinstance(part := data.get(key), Mapping)]
    return any(_is_on(part.get("oracle")) for part in arguments)


def may_monitor_target_labels(config: Mapping[str, Any]) -> bool:
    """Whether a callback was allowed to monitor an ``oracle/`` value, or is told to: then some run was allowed to.

    The allowance is no part of a run's identity, so a table can find the run although it does not give it itself; what
    a run did monitor is in its result.
    """
    allowed = _is_on((config.get("run") or {}).get("allow_oracle"))
    return allowed or '"oracle/' in json.dumps(config.get("trainer"), default=str)


def has_classes_of_the_target(config: Mapping[str, Any]) -> bool:
    """Whether ``data.label_sets`` gives the target classes that the sources lack."""
    from datamodules.label_sets import PRESETS

    arguments = (config.get("data") or {}).get("init_args") or {}
    given = arguments.get("label_sets") or {}
    if isinstance(given, str):
        return bool(given in PRESETS and PRESETS[given].target_private)
    return isinstance(given, Mapping) and given.get("target_private") not in (None, 0, "0", [])


def _is_on(given: Any) -> bool:
    """Reads a switch that may be a word. Every word that does not say no is on."""
    return given.strip().lower() not in NO if isinstance(given, str) else bool(given)
