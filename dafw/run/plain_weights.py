"""``model.checkpoint`` may name a file of weights alone, of a whole classifier that another program has trained."""

from typing import Any

from dafw.checkpoints import read_checkpoint
from dafw.errors import UserError
from dafw.files import user_path
from dafw.run.config_errors import find_class
from dafw.run.given import NETWORK


def take_plain_weights(config: Any) -> None:
    """Makes a file of weights alone the network's own weights, with the classifier as its head.

    Args:
        config: the parsed configuration, which is changed in place: ``model.network.weights`` is the file,
            ``model.network.head`` is ``pretrained``, and ``model.checkpoint`` is null.

    Raises:
        UserError: if nothing says which network the weights are of.
    """
    arguments = config["model"]["init_args"]
    given, network = arguments.get("checkpoint"), arguments.get("network")
    if not isinstance(given, str) or not _holds_weights_alone(given):
        return
    if network is None or find_class(network["class_path"]) is not find_class(NETWORK):
        return
    inner = network["init_args"]
    if inner["backbone"] == "mnist_net":  # the usual one, which nobody named
        raise UserError(
            f"{given} (model.checkpoint) holds weights and does not say of which network: give model.network.backbone"
        )
    inner["weights"], inner["head"], arguments["checkpoint"] = given, "pretrained", None


def _holds_weights_alone(given: str) -> bool:
    """Whether a path is a file, and no checkpoint of this project."""
    path = user_path(given)
    if not path.is_file() or path.suffix == ".ckpt":
        return False
    try:
        read_checkpoint(path)
    except UserError:
        return True
    return False
