"""AdaWAC: samples weigh their labels against the consistency of two views."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.padding import join_padded, valid_positions
from dafw.errors import UserError
from dafw.losses.dice import soft_dice
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision
from dafw.problems import MaskOutputs
from dafw.problems.model import NetworkBase
from dafw.problems.segmentation import on_canvas
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat


class AdaWAC(VariableLengthBuffers, GeneralizationMethod):
    """Each sample learns from its label or from the consistency of two views, whichever is the harder for it.

    Loss: dice_share * Dice + (1 - dice_share) * mean_i (w_i CE_i + (1 - w_i) r_i). For sample i, CE_i is the mean of
    the cross-entropies of two views, logits (n, K, H, W), and r_i = weight * mean (f_i - f'_i)^2 compares their
    features (n, d, h, w). Dice is the mean of both views' soft Dice losses of the whole batch. The weights w_i start at
    1/2. A step of mirror ascent comes before the loss: w_i grows by the factor exp(rate * (CE_i - r_i)), and w_i and
    1 - w_i are then divided by their sum. No gradient flows into it. A sample with few labelled pixels has a low CE_i,
    and its consistency then counts.

    Dong, Xie and Ward, Adaptively Weighted Data Augmentation Consistency Regularization for Robust Optimization under
    Concept Shift, ICML 2023, https://arxiv.org/abs/2210.01891. The views are the augmented image and its view
    ``affine``. As in the authors' code, features are compared place by place although the views may be moved against
    each other. The weights are kept as log(w / (1 - w)), which cannot overflow. The authors compare the deepest map of
    the encoder; here it is ``features``.

    The control is ERM on both views: every w_i is 1. It has the Dice loss too.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W).
        weight: weight of the consistency within r_i (authors' code: 2); with 0 every w_i is 1.
        rate: step size of the weights (authors' code: 2 for TransUNet, 8 for U-Net).
        dice_share: share of the Dice loss (authors' code: 0.5).
        base: see :class:`~dafw.methods.base.Method`. The authors' code: SGD, ``lr`` 0.01, ``weight_decay`` 1e-4, a
            constant rate, batches of 24.

    Raises:
        UserError: in training, if there is no datamodule.
    """

    kinds = ("segmentation",)
    views = ("affine",)
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    control_difference_reason: ClassVar[str] = "it trains on two views of each image, and by a Dice loss too"
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 10.0), "rate": (0.1, 10.0)}
    variable_buffers = ("log_odds",)
    log_odds: Tensor
    starts: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        weight: NonNegativeFloat = 2.0,
        rate: NonNegativeFloat = 2.0,
        dice_share: ClosedUnitInterval = 0.5,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.rate, self.dice_share = weight, rate, dice_share
        self.register_buffer("log_odds", torch.empty(0))
        self.register_buffer("starts", torch.empty(0, dtype=torch.int64), persistent=False)

    def on_train_start(self) -> None:
        """Makes a weight for each training sample, unless a checkpoint held them.

        Raises:
            UserError: if it held those of other samples.
        """
        data: Any = self.data
        sizes = torch.tensor([len(domain) for domain in data.train_domains])
        self.starts = (sizes.cumsum(0) - sizes).to(self.device)
        if not len(self.log_odds):
            self.log_odds = self.log_odds.new_zeros(int(sizes.sum()))
        if len(self.log_odds) != int(sizes.sum()):
            raise UserError(f"the checkpoint weighs {len(self.log_odds)} samples, but the data has {int(sizes.sum())}")

    def losses(self, batch: Batch) -> Losses:
        """The Dice loss, the weighted cross-entropies and the weighted consistencies, of one pass over both views."""
        x, sizes = join_padded([(batch.x, batch.sizes), (batch.views["affine"], batch.view_sizes.get("affine"))])
        both = self.forward_rows(x, len(x), sizes=sizes)
        pair = [both[: len(batch)], both[len(batch) :]]
        canvas = (x.shape[2], x.shape[3])
        moved_sizes = None if sizes is None else sizes[len(batch) :]
        labels = [
            on_canvas(batch.y, both.logits),
            self.problem.carry(batch.y, batch.maps["affine"], canvas, moved_sizes),
        ]
        views = list(zip(pair, labels, strict=True))
        supervised = torch.stack([self.problem.row_losses(*view) for view in views]).mean(0)
        dice = torch.stack([soft_dice(one.logits, y) for one, y in views]).mean()
        consistency = self.weight * squared_difference(*pair)
        w = self.weighted(batch, supervised, consistency) if self.weight else torch.ones_like(supervised)
        share = 1 - self.dice_share
        return {
            "supervised": self.dice_share * dice + share * (w * supervised).mean(),
            "consistency": share * ((1 - w) * consistency).mean(),
        }

    @torch.no_grad()
    def weighted(self, batch: Batch, supervised: Tensor, consistency: Tensor) -> Tensor:
        """The samples' weights (n,) after a step of mirror ascent, which all ranks note."""
        places = self.starts[batch.domain] + batch.index
        step = (self.rate * (supervised - consistency)).to(self.log_odds.dtype)
        raised = self.log_odds.index_add(0, gather_rows(places), gather_rows(step))
        self.propose(log_odds=raised)
        return raised[places].sigmoid().to(supervised.dtype)


def squared_difference(one: MaskOutputs, other: MaskOutputs) -> Tensor:
    """The mean squared difference of the features of two views of each image, (n,); padding does not count."""
    gap = (full_precision(one.features) - full_precision(other.features)).square().mean(1)
    if one.sizes is None or other.sizes is None:
        return gap.mean((1, 2))
    canvas, grid = (one.logits.shape[2], one.logits.shape[3]), (gap.shape[1], gap.shape[2])
    inside = valid_positions(one.sizes, canvas, grid) & valid_positions(other.sizes, canvas, grid)
    return gap.masked_fill(~inside, 0).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
