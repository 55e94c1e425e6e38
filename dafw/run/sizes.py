"""The size of the images is said once: a network that is built for one size follows the data's."""

import inspect
from collections.abc import Iterable
from typing import Any

from dafw.nn.backbones import needs_size
from dafw.run.config_errors import find_class


def follow_size(config: Any, arguments: Iterable[str]) -> None:
    """Gives the network the size of the images, if the data was given one and the network none.

    Args:
        config: the parsed configuration, which is changed in place.
        arguments: the command line. A size that it names counts as given, although it may be the usual one.
    """
    data, network = config["data"], config["model"]["init_args"].get("network")
    owner = find_class(data["class_path"])
    size = data["init_args"].get("size")
    if not getattr(owner, "size_is_side", False) or size is None or "init_args" not in (network or {}):
        return
    named = any(word.partition("=")[0] in ("--data.size", "--data.init_args.size") for word in arguments)
    inner = network["init_args"]
    asked = (named or size != _usual_size(owner)) and inner.get("input_size", 0) is None and "backbone" in inner
    if asked and needs_size(inner["backbone"], inner.get("backbone_args") or {}, size):
        inner["input_size"] = size


def _usual_size(owner: type) -> Any:
    """The default of ``size``, which a datamodule or one of its base classes declares."""
    for one in owner.__mro__:
        parameter = inspect.signature(vars(one).get("__init__", object.__init__)).parameters.get("size")
        if parameter is not None:
            return parameter.default
    return None
