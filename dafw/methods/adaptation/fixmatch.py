"""FixMatch: confident predictions on weak views teach strong views."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.pseudo_labels import confident_cross_entropy, confident_labels
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat


class FixMatch(AdaptationMethod):
    """The network learns to repeat its confident prediction on a target image for a strongly augmented view of it.

    Loss: CE(source) + weight / n_t * sum_i 1[max_k q_ik >= threshold] CE(p_i, argmax_k q_ik), where q_i and p_i are the
    predictions (n_t, K) for the weak and the strong view of target image i; no gradient flows into q. The datamodule's
    ``augment`` makes source and weak images, its view ``strong`` the strong ones.

    Sohn et al., FixMatch, NeurIPS 2020, https://arxiv.org/abs/2001.07685, equations 3 and 4. The paper is about
    semi-supervised learning: labelled and unlabelled images of one domain. With labelled source images and unlabelled
    target images it is a baseline of domain adaptation, and tllib includes it as such. As in the authors' code
    (recalled), all three kinds of rows make one pass, so batch normalisation sees (n_s + 2 n_t) rows at once. tllib
    makes three passes, the weak one without a gradient. ``norm: separate`` comes closest to it: source and target rows
    then have statistics of their own. The paper trains with ``lr`` 0.03, momentum 0.9 (Nesterov), a cosine schedule and
    seven unlabelled images for each labelled one, and evaluates a moving average (``ema_decay`` 0.999).

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the loss on the target (paper: 1).
        threshold: least probability of a weak view's class for it to be used (paper: 0.95; tllib: 0.9, 0.8 on VisDA).
        base: see :class:`~dafw.methods.base.Method`. tllib trains with ``lr`` 0.003 (Office-31: 0.001).
    """

    views = ("strong",)
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"threshold": (0.7, 0.98), "weight": (0.1, 2.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, weight: NonNegativeFloat = 1.0, threshold: ClosedUnitInterval = 0.95, **base
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.threshold = weight, threshold

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss and that of the strong views, from one pass over source, weak and strong rows."""
        joint = self.forward_rows(self._passed(batch), batch.num_source)
        source, weak, strong = joint[: batch.num_source], joint[batch.num_source : len(batch)], joint[len(batch) :]
        consistency = confident_cross_entropy(strong.logits, weak.logits, self.threshold)
        terms = {"supervised": self.problem.loss(source, batch.y), "consistency": self.weight * consistency}
        if self.logs_this_step:
            _, sure = confident_labels(weak.logits, self.threshold)
            self.diagnose("confident_share", sure.float().mean())
        return terms

    def statistics_pass(self, batch: Batch) -> None:
        """The pass over source, weak and strong rows."""
        self.forward_rows(self._passed(batch), batch.num_source)

    def _passed(self, batch: Batch) -> Tensor:
        return torch.cat([batch.x, batch.views["strong"][batch.num_source :]])
