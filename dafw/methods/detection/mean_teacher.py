"""MeanTeacher: Unbiased Teacher across domains, and by its options Adaptive Teacher, ALDI++ and MIC."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.padding import join_padded
from dafw.errors import UserError, choose
from dafw.losses.maps import domain_loss, mean_over_places
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.methods.detection.box_teacher import BoxTeacher
from dafw.methods.detection.lessons import strong_rows
from dafw.nn.place_critic import PlaceCritic, places, unit_gradient
from dafw.nn.reversal import reverse_gradient
from dafw.problems import NetworkBase
from dafw.problems.outputs import BoxOutputs
from dafw.ranges import Checked, NonNegativeFloat, PositiveInt, RightOpenUnitInterval

SourceViews = Literal["strong", "weak", "both"]
Start = Literal["student", "average"]


@dataclass(frozen=True)
class ImageCritic(Checked):
    """Adaptive Teacher: a critic tells the domains by the student's feature maps, whose gradient is reversed.

    Li et al., Cross-Domain Adaptive Teacher for Object Detection, CVPR 2022, https://arxiv.org/abs/2111.13216.

    Args:
        weight: weight of the critic's loss (paper: 0.1).
        reversal: factor of the reversed gradient (authors' code: 1).
        width: channels of the critic's first layer (authors' code: 256).
    """

    config_key: ClassVar[str] = "model.critic"
    weight: NonNegativeFloat = 0.1
    reversal: NonNegativeFloat = 1.0
    width: PositiveInt = 256


class Rows(NamedTuple):
    """What passes through the student.

    Attributes:
        x: (N, C, H, W), source rows first.
        sizes: (N, 2), height and width of each image within its padding; ``None`` if no image is padded.
        num_source: number of source rows.
        y: labels of the source rows, in the frames of their views.
    """

    x: Tensor
    sizes: Tensor | None
    num_source: int
    y: list[Any]


class MeanTeacher(BoxTeacher, AdaptationMethod):
    """A teacher labels weak views of target images, and the student learns from strong views of them and of the source.

    Loss: L(source) + weight * mean over the n_t target images of w (L_class + L_objectness), for images (n_s, C, H, W)
    and (n_t, C, H, W). L are the detector's losses, without those of places unless ``pseudo_boxes``. The labels of the
    target are the teacher's detections with a score above ``threshold``; w is 0 for an image without any, else 1. The
    teacher is a moving average of the student. During the burn-in, the first share ``burn_in`` of training, the student
    learns from the source alone. Then the teacher starts as the student. The teacher is evaluated.

    With ``labels: soft`` the terms of the target are weight * (CE of the student's regions + L_soft), where the labels
    are the teacher's class probabilities of the student's ``regions`` likeliest proposals, and L_soft compares the
    scores of all positions with the teacher's, see :func:`~dafw.losses.soft_labels.soft_score_loss`. With ``critic``
    there is critic.weight * (BCE of a critic of the source's places + that of the target's) / levels, whose gradient is
    reversed at the feature maps.

    Unbiased Teacher, the default: Liu et al., ICLR 2021, https://arxiv.org/abs/2102.09480; the focal loss of regions
    is ``model.network.region_focal``. ``critic`` makes it Adaptive Teacher: Li et al., CVPR 2022,
    https://arxiv.org/abs/2111.13216. ``labels: soft`` with ``masked``, ``pseudo_boxes`` and ``start: average`` is
    ALDI++: Kay et al., TMLR 2025, https://arxiv.org/abs/2403.12029. ``masked`` is MIC: Hoyer et al., CVPR 2023,
    https://arxiv.org/abs/2212.01322. The authors' codes differ in these points. Unbiased and Adaptive Teacher train on
    target images without a pseudo-label as if these held no object; here, as in MIC, such an image is skipped. They
    make one pass for source and one for target images; here both make one, and ``norm: separate`` normalises each
    domain by its own statistics. Adaptive Teacher's critic sees weak views, in passes of their own; here it sees the
    rows that the student passes anyway, at all levels of the pyramid. MIC's pseudo-labels do not count alike: its code
    multiplies the loss of the class of each region of the masked image, labelled or background, by the largest
    probability that the student gives it, without a gradient, and the loss of the objectness of each anchor by the
    student's probability of an object, with its gradient. This is ``label_weights: certainty``. It is not the default,
    so that runs which were made without it stay what they are; the preset has it. The presets in
    ``experiments/detection`` list the rest.

    The control (``weight`` 0) has the same burn-in, views and average, and no loss of pseudo-labels.

    Args:
        network: images (N, C, H, W) to the outputs of a detector.
        weight: weight of the losses with the teacher's labels (Unbiased Teacher: 4; Adaptive Teacher: 1).
        threshold: score above which a detection is a pseudo-label (Unbiased Teacher: 0.7; Adaptive Teacher: 0.8).
        decay: of the teacher (papers: 0.9996; MIC: 0.9).
        burn_in: share of training without a teacher (Adaptive Teacher: a fifth; Unbiased Teacher: 2,000 to 12,000
            steps).
        start: how the teacher starts after the burn-in: as the ``student``; or ``average``, which the student then
            starts as, too (ALDI++).
        source_views: which views of the source teach: ``strong`` (ALDI++), ``weak``, or ``both`` (authors' codes of
            Unbiased and Adaptive Teacher), which takes twice as many source rows.
        critic: adds Adaptive Teacher's critic, see :class:`ImageCritic`; none if null.
        teaching: see :class:`~dafw.methods.detection.box_teacher.BoxTeacher`: ``labels``, ``class_thresholds``,
            ``pseudo_boxes``, ``label_weights``, ``masked``, ``interval``, ``regions``, ``serve``.

    Raises:
        UserError: for a burn-in with ``norm`` ``domain_specific``, or one that no step follows.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "critic": None}
    control_difference_reason: ClassVar[str] = "it learns from strong views of the source, and serves an average"
    search_space: ClassVar[dict[str, Any]] = {"threshold": (0.5, 0.95), "weight": (0.25, 4.0), "lr": (1e-4, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        burn_in: RightOpenUnitInterval = 0.2,
        start: Start = "student",
        source_views: SourceViews = "strong",
        critic: ImageCritic | None = None,
        **teaching,
    ) -> None:
        super().__init__(network, **teaching)
        choose("model.start", start, ("student", "average"))
        choose("model.source_views", source_views, ("strong", "weak", "both"))
        if burn_in and self.norm == "domain_specific":
            raise UserError(
                "model.norm is domain_specific, and no target image passes through the network in the burn-in: take "
                "separate, or model.burn_in 0"
            )
        self.burn_in, self.start, self.source_views = burn_in, start, source_views
        self.critic_options = critic
        self.critic = None if critic is None else PlaceCritic(network.num_features, critic.width)
        self.adversarial = () if critic is None else ("domain",)  # type: ignore[misc]

    @property
    def first_taught(self) -> int:
        """The number of the first step with a teacher."""
        return math.ceil(self.burn_in * self.steps_planned - 1e-6)

    def on_train_start(self) -> None:
        """Refuses a burn-in that no step follows."""
        if self.first_taught >= self.steps_planned:
            raise UserError(
                f"model.burn_in {self.burn_in:g} leaves none of the {self.steps_planned} steps to the teacher: lower it"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """As the base; the teacher starts when the burn-in ends."""
        super().on_train_batch_start(batch, batch_idx)
        if self.step == self.first_taught:
            if self.start == "student":
                self.teacher.copy_from()
            else:
                self.teacher.restore()

    def losses(self, batch: Batch) -> Losses:
        """The supervised losses, those of the teacher's labels and, with a critic, the domains'."""
        taught = self.step >= self.first_taught
        lesson = self.teach(batch) if taught else None
        rows = self.rows(batch, taught)
        joint = self.forward_rows(rows.x, rows.num_source, sizes=rows.sizes)
        source, target = joint[: rows.num_source], joint[rows.num_source :]
        terms = self.problem.terms(source, rows.y)
        if lesson is not None:
            terms |= self.lesson_terms(target, lesson)
        if self.critic is not None:
            terms["domain"] = self.domain_term(source, target) if taught else unit_gradient([*self.critic.parameters()])
        return terms

    def statistics_pass(self, batch: Batch) -> None:
        """The pass over the student's rows."""
        rows = self.rows(batch, True)
        self.forward_rows(rows.x, rows.num_source, sizes=rows.sizes)

    @torch.no_grad()
    def rows(self, batch: Batch, taught: bool) -> Rows:
        """What passes through the student: the views of the source and, if ``taught``, strong views of the target."""
        count, parts, labels = batch.num_source, [], []
        if self.source_views != "strong":
            parts.append((batch.x[:count], None if batch.sizes is None else batch.sizes[:count]))
            labels += batch.y
        if self.source_views != "weak":
            x, sizes = strong_rows(batch, slice(count))
            parts.append((x, sizes))
            size = (int(x.shape[2]), int(x.shape[3]))
            labels += self.problem.carry(batch.y, batch.maps["strong"][:count], size, sizes)
        if taught:
            parts.append(self.strong_target(batch))
        return Rows(*join_padded(parts), len(labels), labels)

    def domain_term(self, source: BoxOutputs, target: BoxOutputs) -> Tensor:
        """The weighted loss of the critic, for each domain a mean over places; the levels count alike."""
        assert self.critic is not None
        assert self.critic_options is not None
        means, right = [], []
        for outputs, is_source in ((source, True), (target, False)):
            for level in outputs.levels.values():
                inside = places(level, outputs.sizes, outputs.canvas)
                scores = self.critic(reverse_gradient(level, self.critic_options.reversal), inside)
                means.append(domain_loss(scores, is_source, inside))
                if self.logs_this_step:
                    says = (scores.detach() > 0) == is_source
                    right.append(mean_over_places(says.to(scores.dtype), inside))
        if self.logs_this_step:
            levels = len(right) // 2
            self.diagnose("critic_accuracy_source", torch.stack(right[:levels]).mean())
            self.diagnose("critic_accuracy_target", torch.stack(right[levels:]).mean())
        return self.critic_options.weight / len(source.levels) * torch.stack(means).sum()
