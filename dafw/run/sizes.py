"""What the data and the network must agree on is said once: the network follows the data.

It is the size of the images, for a network that is built for one size, and the number of features of a row.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from dafw.errors import UserError
from dafw.nn.backbones import needs_size, takes_rows
from dafw.nn.feature_nets import FEATURE_NETS
from dafw.run.config_errors import find_class
from datamodules.feature_rows import FeatureModule


def follow_size(config: Any, arguments: Iterable[str]) -> None:
    """Gives the network the size of the images, or the number of features, if it was given none.

    Args:
        config: the parsed configuration, which is changed in place.
        arguments: the command line. A size that it names counts as given, although it may be the usual one.

    Raises:
        UserError: if rows of features meet a backbone for images, or their number cannot be read.
    """
    data, network = config["data"], config["model"]["init_args"].get("network")
    owner = find_class(data["class_path"])
    if "init_args" not in (network or {}) or "backbone" not in network["init_args"]:
        return
    if issubclass(owner, FeatureModule):
        _follow_width(owner, data["init_args"], network["init_args"])
        return
    size = data["init_args"].get("size")
    if not getattr(owner, "size_is_side", False) or size is None:
        return
    named = any(word.partition("=")[0] in ("--data.size", "--data.init_args.size") for word in arguments)
    inner = network["init_args"]
    asked = (named or size != _usual_size(owner)) and inner.get("input_size", 0) is None
    if asked and needs_size(inner["backbone"], inner.get("backbone_args") or {}, size):
        inner["input_size"] = size


def _follow_width(owner: type[FeatureModule], data: Any, network: Any) -> None:
    """Gives a backbone for features their number."""
    backbone, given = network["backbone"], dict(network.get("backbone_args") or {})
    if not takes_rows(backbone):
        raise UserError(
            f"{owner.__name__} serves rows of features, and the backbone {backbone} takes images: give "
            "--model.network.backbone mlp or identity"
        )
    if backbone in FEATURE_NETS and given.get("in_features") is None:
        network["backbone_args"] = {**given, "in_features": owner.count_features(dict(data))}


def _usual_size(owner: type) -> Any:
    """The default of ``size``, which a datamodule or one of its base classes declares."""
    for one in owner.__mro__:
        parameter = inspect.signature(vars(one).get("__init__", object.__init__)).parameters.get("size")
        if parameter is not None:
            return parameter.default
    return None
