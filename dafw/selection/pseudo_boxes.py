"""How many boxes the target has."""

from typing import ClassVar

import torch
from torch import Tensor

from dafw.selection.base import Evidence, Validator, precise


class PseudoBoxes(Validator):
    """Confident detections for each target image: the number of rows that detection gives as evidence.

    A detector that collapses finds fewer and fewer boxes. A score for boxes alone; a detector that sees boxes
    everywhere has the best possible one, so read it beside the entropy.
    """

    name: ClassVar[str] = "pseudo_boxes"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Tensor:
        """Boxes an image; nan without an image, and if a score is not finite."""
        rows = precise(evidence.target_logits)
        count = len(rows) / evidence.target_samples if evidence.target_samples else torch.nan
        return torch.where(rows.isfinite().all(), rows.new_tensor(count), torch.nan)
