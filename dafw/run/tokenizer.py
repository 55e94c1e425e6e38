"""The encoder of texts is named once: the data take the tokenizer of the network's backbone."""

from typing import Any

from dafw.data.hub import PREFIX, encoder_of
from dafw.errors import UserError
from dafw.nn.digits import DIGIT_NETS
from dafw.run.config_errors import find_class
from datamodules.text import TextDomains


def follow_encoder(config: Any) -> None:
    """Gives texts the tokenizer of the network's backbone, if they were given none.

    Args:
        config: the parsed configuration, which is changed in place.

    Raises:
        UserError: for texts and a backbone for images, for the tokenizer of another encoder, or for an encoder of texts
            and other data.
    """
    data, network = config["data"], config["model"]["init_args"].get("network")
    inner = network["init_args"] if "init_args" in (network or {}) else {}
    backbone = inner.get("backbone")
    owner, encoder = find_class(data["class_path"]), encoder_of(backbone)
    if not (isinstance(owner, type) and issubclass(owner, TextDomains)):
        if encoder is not None and owner.__module__.partition(".")[0] == "datamodules":
            raise UserError(f"the backbone {backbone} takes texts, and {owner.__name__} serves none: give TextDomains")
        return
    if encoder is None:
        if backbone in DIGIT_NETS:
            raise UserError(
                f"the backbone {backbone} takes images, and {owner.__name__} serves texts: give "
                f"--model.network.backbone {PREFIX} and the name or folder of an encoder"
            )
        return
    given = data["init_args"].get("tokenizer")
    if given not in (None, encoder):
        raise UserError(
            f"data.tokenizer is {given}, and the backbone is {backbone}: leave data.tokenizer out, since it follows "
            "the backbone"
        )
    data["init_args"]["tokenizer"] = encoder
