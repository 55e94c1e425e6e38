"""ROID: sure and diverse predictions are made surer, and weights are drawn back to the start."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.self_training import (
    corrected_by_prior,
    diverse_and_certain,
    soft_likelihood_ratio,
    symmetric_cross_entropy,
)
from dafw.methods.base import Losses
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.distributed import gather_rows, world_size
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.stream_views import TestTimeViews, unit_images
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, PositiveFloat


class ROID(TestTimeMethod):
    """Raises the likelihood ratio of sure predictions that are unlike the recent ones, and keeps near the start model.

    Loss: 1/B sum_i w_i (SLR(z_i) + SCE(z'_i, z_i)): logits z (n, K) of the batch, z' of one random view of it, B the
    nominal size of a batch or window, weights w by :func:`~dafw.losses.self_training.diverse_and_certain`, SLR by
    :func:`~dafw.losses.self_training.soft_likelihood_ratio` and SCE by
    :func:`~dafw.losses.self_training.symmetric_cross_entropy`, with gradients in both of its sides. Rows with w = 0 do
    not count. Batch normalisation of the view takes the statistics of the other rows alone. After each step
    theta <- momentum_start theta + (1 - momentum_start) theta_start. Served are the logits before the step times the
    smoothed prior of the batch, see :func:`~dafw.losses.self_training.corrected_by_prior`.

    Marsden et al., Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior Correction,
    WACV 2024, https://arxiv.org/abs/2306.00650. Adam with a rate of 1e-3 in batches of 200 for CIFAR; SGD with 2.5e-4
    in batches of 64 for ImageNet. Weights, the mean prediction and the prior are those of the rows of all ranks.

    Args:
        network: see the base.
        temperature: T of the weights (paper: 1/3).
        momentum_probabilities: share of itself that the mean prediction of late keeps in a step (paper: 0.9).
        momentum_start: see above (paper: 0.99).
        weighting: whether rows are weighted; if not, each has the weight 1.
        consistency: whether the second term is there.
        prior_correction: whether the prior corrects what is served.
        augment: how the view differs from its image; ``None`` for the defaults of
            :class:`~dafw.nn.stream_views.TestTimeViews` without blur and noise, and with mirrored borders, as in
            the authors' code.
        optimizer: see the base (the authors' code: Adam).
        lr: see the base.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`. ``statistics`` is ``batch``.

    Attributes:
        recent: (K,), the mean prediction of late; uniform at first.
    """

    default_statistics = "batch"
    default_learns = "norm"
    backbone_passes: ClassVar[int] = 2
    only_images = "makes views of images"
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "momentum_start": [0.9, 0.99, 0.999]}
    first_served_reason = "the first batch's scores are corrected by its prior, too"
    recent: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        temperature: PositiveFloat = 1 / 3,
        momentum_probabilities: ClosedUnitInterval = 0.9,
        momentum_start: ClosedUnitInterval = 0.99,
        weighting: bool = True,
        consistency: bool = True,
        prior_correction: bool = True,
        augment: TestTimeViews | None = None,
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-3,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.temperature, self.momentum_probabilities = temperature, momentum_probabilities
        self.momentum_start = momentum_start
        self.augment = augment or TestTimeViews(blur=0.0, noise=0.0, border="reflect")
        self.weighting, self.consistency, self.prior_correction = weighting, consistency, prior_correction
        self.register_buffer("recent", torch.full((self.num_classes,), 1 / self.num_classes))

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See the base; corrected by the batch's prior."""
        corrects = self.prior_correction and self.learns != "nothing"
        return corrected_by_prior(outputs.logits) if corrects else outputs.logits

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The likelihood ratio of the rows that count, and the agreement with their view."""
        each = soft_likelihood_ratio(outputs.logits)
        weights = torch.ones_like(each.detach())
        if self.weighting:
            weights = diverse_and_certain(outputs.logits.detach(), self.recent, self.temperature)
        counted, scale = weights > 0, world_size() / (self.data.target_batch_size * self.data.stream.window)
        if not self.repeated_pass:
            self.rows_used = counted
        terms = {"likelihood_ratio": scale * (weights * each).sum()}
        if self.consistency:
            view = self.augment(unit_images(batch.x, self.network.shift), self.data_seed, self.step, "view")
            with self.layout.temporarily(counted=counted), self.layout.untracked():
                seen = self.forward_rows(view, 0)
            terms["consistency"] = scale * (weights * symmetric_cross_entropy(seen.logits, outputs.logits)).sum()
        mean = gather_rows(full_precision(outputs.logits.detach()).softmax(1)).mean(0)
        self.propose(recent=torch.lerp(mean, self.recent.to(mean), self.momentum_probabilities))
        return terms

    @torch.no_grad()
    def step_teachers(self) -> None:
        """As the base, then the weights are drawn back to the start."""
        super().step_teachers()
        if self.moves:
            for own, start in zip(self.network.parameters(), self.start.module.parameters(), strict=True):
                if own.requires_grad:
                    own.lerp_(start.to(own), 1 - self.momentum_start)
