"""AdaEnt and AdaMI: entropy and a class-ratio prior, without a source."""

import math
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.shares import read_shares
from dafw.errors import UserError, choose
from dafw.losses.pixel_terms import Divergence, Ratio, class_ratios, pixel_entropy, ratio_divergence
from dafw.methods.base import Losses
from dafw.methods.source_free.base import SourceFreeMethod
from dafw.methods.targets import sum_over_targets
from dafw.problems import MaskOutputs
from dafw.problems.model import NetworkBase
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat


class AdaMI(SourceFreeMethod):
    """A source model grows confident on target pixels while each image keeps to a prior of the classes' shares.

    Loss: weight * mean_i -sum_k v_k p_ik log p_ik + prior_weight * mean_b KL(r_b || t). The first mean is over the
    pixels i of all images, logits (n, K, H, W) with p = softmax. r_b (K,) are the shares of the classes in image b, the
    mean of p over its pixels. t (K,) is the prior. With a uniform prior and equal v it is the mutual information of
    pixel and class. Padding counts in no mean.

    Bateson et al., Source-Free Domain Adaptation for Image Segmentation, Medical Image Analysis 82 (2022),
    https://arxiv.org/abs/2108.03152. Its experiments know which classes an image holds and have a prior for each image,
    which is weak supervision. Here one prior holds for all images, and no label of the target is used. That is a weaker
    form: on small generated shapes the prior of each image was worth most of the gain. ``image_priors`` gives each
    image its own. If they were counted in labels of the target, they are weak supervision, and nothing in the result
    says so: say it beside the numbers. The prior ``estimated`` is ours: the mean of r_b over the targets' training
    images, as the source model predicts them.

    The control trains by the entropy alone. That may end in one class for all pixels, more so at a rate above 1e-4.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W).
        checkpoint: the source model: a checkpoint, or the directory of a run.
        prior: ``uniform``, ``estimated`` by the source model, or the K known shares, which must sum to 1.
        image_priors: a CSV file with a prior for each training image of the targets, in the columns ``sample`` and
            ``share_<class>``, as in ``index.csv`` of ``dafw predict``; it takes the place of ``prior``.
        weight: weight of the entropy (authors' code: 1).
        prior_weight: weight of the divergence from the prior (authors' code: 1).
        class_weights: v, K weights of the classes in the entropy; 1 each if ``None`` (authors' code: 0.1 for the ground
            and 0.9 for the prostate).
        ratio: how r_b is made: ``softmax``, the mean of p (paper), or ``norm_max`` (authors' code), which sums
            p / max_k p over the pixels and divides by the sum over classes.
        divergence: ``estimate_prior`` is KL(r || t) (paper), ``prior_estimate`` is KL(t || r).
        optimizer: see the base (authors' code: Adam).
        lr: see the base (authors' code: 1e-6, times 0.9 after every fifth of training).
        weight_decay: see the base (authors' code: 1e-4, or 1e-3 for hearts).
        base: see :class:`~dafw.methods.base.Method`. The authors' batches hold 24 slices.

    Raises:
        UserError: if the prior does not sum to 1, or prior or class weights are of another number of classes; when
            training starts, for what :func:`~dafw.data.shares.read_shares` finds in ``image_priors``.
    """

    kinds = ("segmentation",)
    control: ClassVar[dict[str, Any]] = {"prior_weight": 0.0}
    control_difference_reason: ClassVar[str] = "it starts from the source model and minimises the entropy alone"
    control_learns_target: ClassVar[bool] = True
    search_space: ClassVar[dict[str, Any]] = {"prior_weight": (0.1, 10.0), "lr": (1e-6, 1e-3)}
    shares: Tensor
    class_weights: Tensor | None
    shares_of_images: Tensor | None
    starts: Tensor | None

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        checkpoint: str | None = None,
        prior: list[ClosedUnitInterval] | str = "estimated",
        image_priors: str | None = None,
        weight: NonNegativeFloat = 1.0,
        prior_weight: NonNegativeFloat = 1.0,
        class_weights: list[NonNegativeFloat] | None = None,
        ratio: Ratio = "softmax",
        divergence: Divergence = "estimate_prior",
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-6,
        weight_decay: NonNegativeFloat = 1e-4,
        **base,
    ) -> None:
        super().__init__(network, checkpoint=checkpoint, optimizer=optimizer, lr=lr, weight_decay=weight_decay, **base)
        self.prior = choose("model.prior", prior, ("uniform", "estimated")) if isinstance(prior, str) else "known"
        self.weight, self.prior_weight, self.image_priors = weight, prior_weight, image_priors
        choose("model.ratio", ratio, get_args(Ratio))
        choose("model.divergence", divergence, get_args(Divergence))
        self.ratio, self.divergence = ratio, divergence
        for key, values in (("prior", prior), ("class_weights", class_weights)):
            if isinstance(values, list) and len(values) != self.num_classes:
                raise UserError(
                    f"model.{key} has {len(values)} numbers for {self.num_classes} classes: give one a class"
                )
        shares = [1 / self.num_classes] * self.num_classes if isinstance(prior, str) else list(prior)
        if not math.isclose(sum(shares), 1, abs_tol=1e-4):
            raise UserError(f"model.prior must sum to 1, and sums to {sum(shares):g}")
        self.register_buffer("shares", torch.tensor(shares))
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("shares_of_images", None, persistent=False)
        self.register_buffer("starts", None, persistent=False)

    def on_fit_start(self) -> None:
        """As the base; reads the priors of the images."""
        super().on_fit_start()
        if self.image_priors is not None:
            data: Any = self.data
            ids = [domain.id(index) for domain in data.train_domains for index in range(len(domain))]
            found = read_shares("model.image_priors", self.image_priors, ids, data.known_names)
            sizes = torch.tensor([len(domain) for domain in data.train_domains])
            self.shares_of_images = found.to(self.shares)
            self.starts = (sizes.cumsum(0) - sizes).to(self.device)

    def on_train_start(self) -> None:
        """Estimates the prior, if the first step follows and it is to be estimated."""
        if self.prior == "estimated" and self.steps_done == 0 and self.image_priors is None:
            self.shares.copy_(self.estimated())

    def estimated(self) -> Tensor:
        """The mean shares (K,) of the classes in the targets' training images, as the network predicts them now."""

        def ratios(outputs: MaskOutputs) -> Tensor:
            return class_ratios(outputs.logits, outputs.valid(), self.ratio).double().sum(0)

        total = sum_over_targets(self, ratios, (self.num_classes,))
        return total / total.sum()

    def adapt(self, target: Any, batch: Batch) -> Losses:
        """The entropy of the pixels, and the divergence of each image's shares from the prior."""
        valid = target.valid()
        terms = {"entropy": self.weight * pixel_entropy(target.logits, valid, self.class_weights)}
        if self.prior_weight:
            ratios = class_ratios(target.logits, valid, self.ratio)
            prior = self.shares
            if self.shares_of_images is not None and self.starts is not None:
                prior = self.shares_of_images[self.starts[batch.domain] + batch.index]
            terms["prior"] = self.prior_weight * ratio_divergence(ratios, prior, self.divergence)
        return terms


class AdaEnt(AdaMI):
    """The earlier form of AdaMI: the prior comes first in the divergence, so that no class of it may be missing.

    Loss: weight * mean_i -sum_k v_k p_ik log p_ik + prior_weight * mean_b KL(t || r_b), for logits (n, K, H, W); see
    :class:`AdaMI`.

    Bateson et al., Source-Relaxed Domain Adaptation for Image Segmentation, MICCAI 2020,
    https://arxiv.org/abs/2005.03697. The direction of the divergence is recalled.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W).
        divergence: see :class:`AdaMI`.
        options: see :class:`AdaMI`.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, network: NetworkBase, *, divergence: Divergence = "prior_estimate", **options
    ) -> None:
        super().__init__(network, divergence=divergence, **options)
