"""The networks of a method on the command line: the usual one, or those of the checkpoints that it starts from."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import yaml
from jsonargparse import ArgumentError
from pytorch_lightning.cli import LightningArgumentParser

from dafw.checkpoints import read_checkpoint
from dafw.errors import UserError
from dafw.files import user_path
from dafw.methods.starting import find_checkpoint
from dafw.nn.backbones import check_known
from dafw.plain_yaml import load_yaml
from dafw.run.given import NETWORK, NETWORKS

_CLOUD = re.compile(r"--model\.(?:init_args\.)?(cloud_checkpoint$|cloud(?=\.|$))")


def with_network(parser: LightningArgumentParser, arguments: list[str]) -> list[str]:
    """Adds ``Network()`` to the arguments if the method needs a network and none is given.

    What they or a file say of the network without naming its class is said of a ``Network``. A method that starts
    from a model gets the network of its checkpoint.
    """
    models = list(_models(arguments))
    classes = [str(model["class_path"]) for model in models if model.get("class_path")]
    networks = [network for model in models if (network := _inside(model).get("network")) is not None]
    if any(isinstance(network, str) or (isinstance(network, dict) and "class_path" in network) for network in networks):
        return arguments
    if networks:  # the method comes first: without it, the network would bring the defaults of the methods' base class
        method = ["--model", classes[-1]] if classes else []
        return [*method, "--model.network", NETWORK, *arguments]
    try:
        parser.parse_args([argument for argument in arguments if not argument.startswith("--print_config")])
    except ArgumentError as error:
        if "arguments are required: network" in str(error):
            return [*arguments, "--model.network", _network(parser, [*arguments, "--model.network", NETWORK])]
    return arguments


def with_cloud(arguments: list[str]) -> list[str]:
    """Adds the network of ``model.cloud_checkpoint`` if that is given, and no ``model.cloud`` is.

    Raises:
        UserError: if there is no such checkpoint.
    """
    given = [_inside(model) for model in _models(arguments)]
    checkpoints = [one["cloud_checkpoint"] for one in given if one.get("cloud_checkpoint")]
    if not checkpoints or any(one.get("cloud") is not None for one in given):
        return arguments
    find_checkpoint(checkpoints[-1], "model.cloud_checkpoint")
    return [*arguments, "--model.cloud", _network_of(checkpoints[-1])]


def _models(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """What each argument and each file says of the method and its network, in their order."""
    words = [*arguments, ""]
    for argument, following in pairwise(words):
        key, equals, value = argument.partition("=")
        value = value if equals else following
        if key == "--model":
            yield {"class_path": value}
        elif key in ("--model.network", "--model.network.class_path", "--model.init_args.network"):
            yield {"network": value}
        elif key.startswith(("--model.network.", "--model.init_args.network.")):
            yield {"network": {}}
        elif match := _CLOUD.match(key):
            yield {match[1]: value}
        elif key == "--config":
            with suppress(OSError, ValueError, yaml.YAMLError):  # which the parser reports
                held = load_yaml(user_path(value).read_text(encoding="utf-8"))
                model = held.get("model") if isinstance(held, dict) else None
                yield {"class_path": model} if isinstance(model, str) else model if isinstance(model, dict) else {}


def _inside(model: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, which a file may give without naming the class."""
    arguments = model.get("init_args", model)
    return arguments if isinstance(arguments, dict) else {}


def _network(parser: LightningArgumentParser, arguments: list[str]) -> str:
    """The network of the checkpoint that a method starts from, as JSON; the default network if there is none."""
    try:
        given = parser.parse_args([argument for argument in arguments if not argument.startswith("--print_config")])
        return _network_of(given["model.init_args.checkpoint"])
    except (ArgumentError, KeyError):  # which are reported when it matters
        return NETWORK


def _network_of(checkpoint: Any) -> str:
    """The network of a checkpoint as JSON; the default network if there is none."""
    try:
        path = find_checkpoint(checkpoint)
        network = read_checkpoint(path)["dafw"]["method"]["init_args"]["network"]
        if network["class_path"] not in NETWORKS:
            return NETWORK
    except (KeyError, TypeError, UserError):  # which are reported when it matters
        return NETWORK
    check_known(network, path)
    return json.dumps(network)
