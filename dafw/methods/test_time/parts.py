"""Parts of a network whose normalisations stay as they are."""

from collections.abc import Sequence

from dafw.errors import UserError
from dafw.methods.optimisation import trained_parameters
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.norm import norm_parameters

LAST_PARTS = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm")
"""The last parts of a ResNet and of a ViT-B, by timm's names: those that SAR and DeYO leave out."""


def hold_parts(method: TestTimeMethod, names: Sequence[str]) -> None:
    """Keeps scale and shift of the normalisations in some parts of the backbone.

    Args:
        method: made, with nothing trained so far.
        names: of modules of the backbone; what is inside of them counts too. Names that it lacks are passed over.

    Raises:
        UserError: if nothing is left that learns.
    """
    if method.learns not in ("norm", "network"):
        return
    for name, part in method.network.backbone.named_modules():
        if name in names:
            for parameter in norm_parameters(part):
                parameter.requires_grad_(False)
    if not trained_parameters(method.network):
        raise UserError(
            f"{type(method).__name__} keeps the normalisations of {', '.join(names)} (model.skip), and model.network "
            "has no others: give model.skip []"
        )
