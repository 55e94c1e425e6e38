"""WSCoL: a source-free teacher whose features of weak views guide the student's features of strong views."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.data.geometry import move_boxes
from dafw.errors import UserError
from dafw.losses.weak_to_strong import label_regions, update_prototypes, weak_to_strong_contrast
from dafw.methods.base import Losses
from dafw.methods.detection.lessons import Lesson, limits_of, strong_rows
from dafw.methods.detection.source_free_teacher import SourceFreeTeacher
from dafw.nn.detector_shapes import detector_shapes
from dafw.nn.distributed import sum_over_ranks
from dafw.problems import NetworkBase
from dafw.problems.outputs import BoxOutputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt


class WSCoL(SourceFreeTeacher):
    """A source-free teacher, and a contrast of the student's regions in strong views with the teacher's in weak ones.

    Loss: that of :class:`~dafw.methods.detection.source_free_teacher.SourceFreeTeacher`, on target images (n, C, H, W),
    + contrast * mean_i -1/|P(i)| sum_p log(e^{s_i w_p / T} / sum_a v_a e^{s_i w_a / T}). The R regions are the
    teacher's likeliest proposals of the step, w (R, width) the teacher's features of them in weak views and s
    (R, width) the student's in strong views, both mapped by one small network and normalised. i are the regions of
    objects, P(i) those with the label of i, and a all of them. v is 1 for a region of an object and 1 - H(q) / log(K +
    1) for one of the background, q (K + 1,) being the teacher's probabilities. The label of a region is that of the
    nearest prototype of a class, if the teacher agrees or the prototype is clearly nearer than the next one. Prototypes
    are moving averages of sure weak features.

    **Our reading of an abstract**; neither the paper nor code of its authors was read: Weak-to-Strong Contrastive
    Learning for source-free detection, https://arxiv.org/abs/2410.05557. The abstract names the mapping network, the
    clustering by prototypes, the contrast between classes and the background that counts by its uncertainty. Every
    number and formula here is ours. A number of this method is no reproduction of the paper's.

    The control (``contrast`` 0) is the teacher without the contrast. The source detector is another row.

    Args:
        network: as the checkpoint's; a Faster R-CNN, whose regions have scores of the background.
        contrast: weight of the contrast.
        temperature: T.
        width: of the mapped features; the layer before it has twice as many.
        prototype_decay: share of itself that a prototype keeps in a step.
        sure: probability above which a region of an object moves a prototype.
        sure_background: the same of the background.
        margin: by how much a prototype is clearly nearer than the next one, in cosines.
        contrasted: regions of each image, R / n.
        options: see :class:`~dafw.methods.detection.source_free_teacher.SourceFreeTeacher`.

    Raises:
        UserError: for another detector than Faster R-CNN.
    """

    control: ClassVar[dict[str, Any]] = {"contrast": 0.0}
    control_difference_reason: ClassVar[str] = "it is the source-free teacher without the contrast"
    control_learns_target: ClassVar[bool] = True
    search_space: ClassVar[dict[str, Any]] = {"contrast": (0.01, 1.0), **SourceFreeTeacher.search_space}
    prototypes: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        contrast: NonNegativeFloat = 0.1,
        temperature: PositiveFloat = 0.07,
        width: PositiveInt = 128,
        prototype_decay: ClosedUnitInterval = 0.99,
        sure: ClosedUnitInterval = 0.7,
        sure_background: ClosedUnitInterval = 0.9,
        margin: NonNegativeFloat = 0.1,
        contrasted: PositiveInt = 100,
        **options,
    ) -> None:
        super().__init__(network, **options)
        self.contrast, self.temperature, self.contrasted = contrast, temperature, contrasted
        self.prototype_options = {"decay": prototype_decay, "threshold": sure, "background_threshold": sure_background}
        self.margin = margin
        shapes = detector_shapes(network)
        if not shapes.has_background:
            raise UserError(
                "WSCoL needs scores of the background for a region, which this detector has not: set "
                "model.network.arch to fasterrcnn"
            )
        depth = shapes.region_width
        self.mapping = nn.Sequential(nn.Linear(depth, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.register_buffer("prototypes", torch.zeros(self.num_classes + 1, width))

    def losses(self, batch: Batch) -> Losses:
        """The teacher's losses and the contrast, of one pass of the student."""
        lesson = self.teach(batch)
        self.count(lesson)
        x, sizes = self.strong_target(batch)
        target = self.forward_rows(x, 0, sizes=sizes)
        strong, strong_sizes = strong_rows(batch, slice(batch.num_source, None))
        contrast = self.contrast_of(target, lesson, limits_of(strong, strong_sizes))
        return {**self.lesson_terms(target, lesson), "contrast": self.contrast * contrast}

    def contrast_of(self, target: BoxOutputs, lesson: Lesson, limits: Tensor) -> Tensor:
        """The contrast, unweighted; the prototypes are proposed.

        Args:
            target: the student's outputs of strong views of n images.
            lesson: the teacher's of weak views.
            limits: (n, 2), height and width of the strong views.
        """
        detector: Any = self.network
        teacher: Any = self.teacher.module
        with torch.no_grad():
            proposals = teacher.proposals(lesson.outputs, self.contrasted)
            moved = [move_boxes(*parts) for parts in zip(proposals, lesson.maps, limits, strict=True)]
            counts = torch.cat([(boxes[:, 2:] - boxes[:, :2] >= 1).all(1) for boxes in moved])
            found = teacher.regions(lesson.outputs, proposals)
            likely = found.logits.softmax(1)
            weak = F.normalize(self.mapping(found.features), dim=1)
        strong = F.normalize(self.mapping(detector.regions(target, moved).features), dim=1)
        prototypes = update_prototypes(self.prototypes, weak, likely, counts, **self.prototype_options)
        self.propose(prototypes=prototypes)
        labels = label_regions(prototypes, weak, likely, counts, self.margin)
        if self.logs_this_step:
            accepted, objects = labels.accepted, labels.accepted & (labels.labels > 0)
            numbers = torch.stack([accepted.sum(), objects.sum(), counts.sum()]).double()
            labelled, of_objects, regions = sum_over_ranks(numbers).unbind()
            self.diagnose("labelled_regions", labelled / regions)
            self.diagnose("regions_of_objects", of_objects / regions)
        return weak_to_strong_contrast(strong, weak, labels, self.temperature)
