"""RSC: representation self-challenging, training without the most decisive features."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.distributed import gather_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval


class RSC(GeneralizationMethod):
    """Trains some samples without those of their features that speak most for their class.

    Loss: CE of logits (n, K); the logits of the rows that depend most on their strongest features are muted. Let g =
    dz_y / df be the gradient of the score of a row's own class at its features (n, d). Muted logits come from f with
    zeros where g is at or above its quantile at 1 - ``drop_features`` among the row's d values. Muting lowers the
    softmax probability of a row's class by some amount, the fall. Rows are muted if their fall is at or above its
    quantile at 1 - ``drop_batch`` over all sources' rows.

    Huang et al., Self-Challenging Improves Cross-Domain Generalization, ECCV 2020, https://arxiv.org/abs/2007.02454,
    on pooled features alone (the paper also mutes places of the map). Quantiles and defaults are those of DomainBed
    (Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434, read in its code). On several ranks the
    quantile of the fall is over all rows. The muted logits take a second pass of the label head, none of the backbone.
    If the head has a hidden layer with dropout, that pass draws another mask, which then affects the fall
    (DomainBed's head has no dropout).

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        drop_features: share of a row's features that is muted (DomainBed: 1/3); 0 is ERM.
        drop_batch: share of the rows that are muted (DomainBed: 1/3); 0 is ERM.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if a share is outside [0, 1].
    """

    control: ClassVar[dict[str, Any]] = {"drop_features": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"drop_features": (0.0, 0.5), "drop_batch": (0.0, 0.5)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        drop_features: ClosedUnitInterval = 1 / 3,
        drop_batch: ClosedUnitInterval = 1 / 3,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.drop_features, self.drop_batch = drop_features, drop_batch

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss; some rows use only their remaining features."""
        joint = self.forward_batch(batch)
        if self.drop_features and self.drop_batch:
            joint = self.challenge(joint, batch.y)
        return {"supervised": self.problem.loss(joint, batch.y)}

    def challenge(self, joint: Outputs, labels: Tensor) -> Outputs:
        """The outputs of all rows, (N, d) and (N, K), with the logits of some rows muted; labels are (N,)."""
        head, own = self.network.head, labels[:, None]
        assert head is not None
        (gradient,) = torch.autograd.grad(joint.logits.gather(1, own).sum(), joint.features, retain_graph=True)
        gradient = full_precision(gradient)
        kept = gradient < gradient.quantile(1 - self.drop_features, dim=1, keepdim=True)
        with self.layout.untracked():
            logits = head(joint.features * kept)
        with torch.no_grad():
            before, after = (full_precision(z).softmax(1).gather(1, own) for z in (joint.logits, logits))
            fall = before - after
            muted = fall >= gather_rows(fall).quantile(1 - self.drop_batch)
        return Outputs(joint.features, torch.where(muted, logits, joint.logits))
