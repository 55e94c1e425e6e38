"""DA Faster R-CNN: positions and regions from which critics cannot tell the domain."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.losses.box_critics import consistency, critic_loss
from dafw.losses.maps import mean_over_places
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.box_critics import ImageCritic, InstanceCritic, LevelCritics, by_group
from dafw.nn.detector_shapes import detector_shapes
from dafw.nn.place_critic import places
from dafw.nn.reversal import reverse_gradient
from dafw.optim.schedules import dann_ramp
from dafw.problems import BoxOutputs, NetworkBase
from dafw.problems.reads import needed_reads
from dafw.ranges import NonNegativeFloat, PositiveInt, RightOpenUnitInterval


class DAFasterRCNN(AdaptationMethod):
    """Trains a detector whose feature maps and regions do not tell two critics the domain.

    Loss: that of the detector on the source + image_weight * BCE(D(reverse(f)), is_source) + instance_weight *
    BCE(E(reverse(r)), is_source) + consistency_weight * mean_j |mean_uv sigmoid(D(f)) - sigmoid(E(r_j))|. D scores each
    position of the feature maps f (n_s + n_t, C, h_i, w_i) of each level i, and E the features r (R, d) of regions.
    Both losses are means over all that the critics score, of both domains; that of D is the mean of the levels'
    means. Padding does not count. A gradient at ``reverse`` is multiplied by -``reversal``. The consistency scores both
    again, and its gradient at f and r is multiplied by +``reversal``: it is not reversed.

    Regions are at the proposals of the detector, at most ``regions`` of each image, the likeliest first. No label is
    used to choose them, and they are as many in both domains. With the critics' dropout, the scores of the consistency
    are of other units than those of the two losses, as in the authors' code.

    Any detector that has proposals and regions will do. FCOS and RetinaNet pool their regions from their pyramid. The
    image critic judges each level of a pyramid.

    Chen et al., Domain Adaptive Faster R-CNN for Object Detection in the Wild, CVPR 2018,
    https://arxiv.org/abs/1803.03243, section 4; the paper's equations 6, 8 and 9 and the weight 0.1 of equation 10.
    The authors' Caffe code was read (yuhuayc/da-faster-rcnn), and a PyTorch version that they link to
    (krumo/Domain-Adaptive-Faster-RCNN-PyTorch). They differ from the paper. Both scale the reversed gradient by 0.1 and
    give the image loss the weight 1. The Caffe code gives the instance loss the weight 0.1, its critic ten times the
    learning rate, and has no consistency. The PyTorch version gives the instance loss the weight 1 and the consistency
    0.1; it draws its regions from the proposals, takes one image of each domain and no other number, and has one critic
    for all levels, where each position counts alike (``critic_levels: shared``). Its batch statistics are frozen.

    Args:
        network: a detector; images (N, 3, H, W) to feature maps, proposals and regions.
        image_weight: weight of the image critic's loss (paper: 0.1); with 0 there is no such critic.
        instance_weight: weight of the instance critic's loss (paper: 0.1); with 0 there is no such critic.
        consistency_weight: weight of the distance between the two (paper: 0.1); it needs both critics.
        reversal: factor of the reversed gradient (paper: 1; both codes: 0.1).
        gamma: steepness of the ramp 2 / (1 + exp(-gamma p)) - 1 that multiplies ``reversal``, where p in [0, 1] is the
            share of training done; no ramp if null (paper and both codes: none).
        regions: most regions of an image (both codes: 256, drawn).
        critic_levels: ``each``, one image critic for each level, and the levels count alike (ours; the paper has one
            level); ``shared``, one for all, and all positions count alike (PyTorch version).
        image_width: channels of the image critic's hidden layer (both codes: 512).
        instance_width: width of the instance critic's hidden layers (both codes: 1024).
        critic_dropout: share of the instance critic's hidden units to drop; each rank of a distributed run draws its
            own mask (both codes: 0.5).
        base: see :class:`~dafw.methods.base.Method`. Paper: rate 1e-3 for 50,000 steps, then 1e-4 for 20,000, momentum
            0.9, weight decay 5e-4, one image of each domain.

    Raises:
        UserError: if an instance critic is asked of a detector without regions, or a consistency without both critics.
    """

    kinds: ClassVar[tuple[str, ...]] = ("detection",)
    control: ClassVar[dict[str, Any]] = {"image_weight": 0.0, "instance_weight": 0.0, "consistency_weight": 0.0}
    adversarial: ClassVar[tuple[str, ...]] = ("image", "instance")
    search_space: ClassVar[dict[str, Any]] = {
        **{"image_weight": (0.01, 1.0), "instance_weight": (0.01, 1.0), "consistency_weight": (0.01, 1.0)},
        "lr": (1e-4, 1e-1),
    }

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        image_weight: NonNegativeFloat = 0.1,
        instance_weight: NonNegativeFloat = 0.1,
        consistency_weight: NonNegativeFloat = 0.1,
        reversal: NonNegativeFloat = 1.0,
        gamma: NonNegativeFloat | None = None,
        regions: PositiveInt = 256,
        critic_levels: LevelCritics = "each",
        image_width: PositiveInt = 512,
        instance_width: PositiveInt = 1024,
        critic_dropout: RightOpenUnitInterval = 0.5,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.image_weight, self.instance_weight = image_weight, instance_weight
        self.consistency_weight, self.reversal, self.gamma = consistency_weight, reversal, gamma
        self.regions, self.critic_levels = regions, critic_levels
        if consistency_weight and not (image_weight and instance_weight):
            raise UserError(
                "model.consistency_weight compares two critics, and one of model.image_weight and "
                "model.instance_weight is 0: set model.consistency_weight to 0 too"
            )
        if instance_weight and (lacking := [name for name in ("proposals", "regions") if not hasattr(network, name)]):
            raise UserError(
                f"model.instance_weight asks for a critic of regions, and {type(network).__name__} has no "
                f"{lacking[0]}: set model.instance_weight and model.consistency_weight to 0"
            )
        shapes = detector_shapes(network, regions=bool(instance_weight))
        if image_weight:
            count = 1 if critic_levels == "shared" else len(shapes.strides)
            self.image_critic = ImageCritic(shapes.channels, image_width, count)
        if instance_weight:
            self.instance_critic = InstanceCritic(shapes.region_width, instance_width, critic_dropout)

    @property
    def scale(self) -> float:
        """The factor of the reversed gradient at this step."""
        return self.reversal * (1.0 if self.gamma is None else dann_ramp(self.progress, self.gamma))

    def adapt(self, source: BoxOutputs, target: BoxOutputs, joint: BoxOutputs) -> Losses:
        """The losses of the critics that there are, and the distance between the two."""
        losses: Losses = {}
        count, levels = len(source), list(joint.levels.values())
        of_source = torch.arange(len(joint), device=levels[0].device) < count
        inside = [places(level, joint.sizes, joint.canvas) for level in levels]
        inside = [None if one is None else one.flatten(1) for one in inside]
        if self.image_weight:
            scores = self.image_critic([reverse_gradient(level, self.scale) for level in levels])
            losses["image"] = self.image_weight * self.image_loss(scores, inside, of_source)
        if self.instance_weight:
            found: Any = self.region_features(joint)
            own = self.instance_critic(reverse_gradient(found.features, self.scale))
            is_source = of_source[found.image]
            losses["instance"] = self.instance_weight * critic_loss(own, is_source)
            self.diagnose_scores("instance", own, is_source)
        if self.consistency_weight:
            again = self.image_critic([reverse_gradient(level, -self.scale) for level in levels])
            regions = self.instance_critic(reverse_gradient(found.features, -self.scale))
            losses["consistency"] = self.consistency_weight * consistency(again, regions, found.image, inside)
        return losses

    def image_loss(self, scores: list[Tensor], inside: list[Tensor | None], of_source: Tensor) -> Tensor:
        """The image critic's loss of scores (N, m_i) of each level; ``of_source`` is (N,) bool."""
        together = self.critic_levels == "shared"
        masks = [one for one in inside if one is not None]
        valid = by_group(masks, together) if masks else [None] * len(scores)
        parts = by_group(scores, together)
        losses = [critic_loss(one, of_source[:, None], mask) for one, mask in zip(parts, valid, strict=False)]
        self.diagnose_scores("image", torch.cat(scores, 1), of_source[:, None], torch.cat(masks, 1) if masks else None)
        return torch.stack(losses).mean()

    def region_features(self, outputs: BoxOutputs) -> Any:
        """The regions at the likeliest proposals of each image."""
        network: Any = self.network
        with needed_reads(), torch.no_grad():
            boxes = network.proposals(outputs, self.regions)
        return network.regions(outputs, boxes)

    @torch.no_grad()
    def diagnose_scores(self, name: str, scores: Tensor, is_source: Tensor, valid: Tensor | None = None) -> None:
        """The share of each domain's positions or regions that a critic gets right."""
        if not self.logs_this_step:
            return
        counts = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
        for domain, chosen, right in (("source", is_source, scores > 0), ("target", ~is_source, scores <= 0)):
            share = mean_over_places(right.to(scores.dtype), counts & chosen)
            self.diagnose(f"{name}_accuracy_{domain}", share)
        self.diagnose("reversal", self.scale)
