"""The levels of a segmentation network: its main scores and those of its auxiliary head."""

from typing import Literal

from torch import Tensor

from dafw.errors import UserError
from dafw.problems import MaskOutputs

Levels = Literal[1, 2]


def scores_of_levels(outputs: MaskOutputs, levels: Levels) -> dict[str, Tensor]:
    """Class scores (n, K, H, W) by the suffix of a level's names: the main head's and, if ``levels`` is 2, the others.

    Raises:
        UserError: if there is no auxiliary head.
    """
    if levels == 1:
        return {"": outputs.logits}
    if outputs.auxiliary is None:
        raise UserError("model.levels is 2, but the network has no auxiliary head: give model.levels 1")
    return {"": outputs.logits, "_auxiliary": outputs.auxiliary}
