"""RSC: representation self-challenging, the features that decide taken away."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.distributed import gather_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs


class RSC(GeneralizationMethod):
    """Learns some samples without those of their features that speak most for their class.

    Loss: CE of logits (n, K) of which the rows that matter most are muted. With g = dz_y / df, the gradient of a row's
    score of its own class at its features (n, d), muted logits are those of f where g is below its quantile at
    1 - ``drop_features`` among the row's d values, and of 0 elsewhere. Muted are the rows whose softmax probability of
    their class falls most by it: from the quantile of the fall at 1 - ``drop_batch`` on, over all sources' rows.

    Huang et al., Self-Challenging Improves Cross-Domain Generalization, ECCV 2020, https://arxiv.org/abs/2007.02454,
    on pooled features alone (the paper also mutes places of the map). Quantiles and defaults are those of DomainBed
    (Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434, read in its code). On several ranks the
    quantile of the fall is of all rows. The muted logits take a second pass of the label head, none of the backbone;
    where the head has a hidden layer with dropout, that pass draws another mask, which is then part of the fall
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
        self, network: Network, *, drop_features: float = 1 / 3, drop_batch: float = 1 / 3, **base
    ) -> None:
        super().__init__(network, **base)
        for name, share in (("drop_features", drop_features), ("drop_batch", drop_batch)):
            if not 0 <= share <= 1:
                raise UserError(f"model.{name} is a share, from 0 to 1, not {share}")
        self.drop_features, self.drop_batch = drop_features, drop_batch

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss, of some rows on what is left of their features."""
        joint = self.forward_batch(batch)
        if self.drop_features and self.drop_batch:
            joint = self.challenge(joint, batch.y)
        return {"supervised": self.problem.loss(joint, batch.y)}

    def challenge(self, joint: Outputs, labels: Tensor) -> Outputs:
        """The outputs of all rows (N, d) and (N, K), the logits of some of them muted; labels are (N,)."""
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
