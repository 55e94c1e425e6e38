"""SourceFreeTeacher: a source detector teaches itself the target, and says when it forgets what it knew."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import CollapsedTeacher, choose, warn
from dafw.methods.base import Losses
from dafw.methods.detection.box_teacher import BoxTeacher
from dafw.methods.detection.lessons import Lesson
from dafw.methods.source_free.base import SourceFreeMethod
from dafw.nn.distributed import sum_over_ranks
from dafw.problems import NetworkBase
from dafw.problems.outputs import BoxOutputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt

OnCollapse = Literal["stop", "warn"]
#: The share of the first count of pseudo-labels below which a teacher has collapsed.
COLLAPSED = 0.1


class SourceFreeTeacher(BoxTeacher, SourceFreeMethod):
    """A source detector labels weak views of target images, and its copy learns from strong views of them.

    Loss: weight * mean over the n target images of w (L_class + L_objectness), for images (n, C, H, W), as in
    :class:`~dafw.methods.detection.mean_teacher.MeanTeacher` without a source; all of its kinds of labels are here too.
    Teacher and student start as the source detector. The teacher is a moving average of the student, and is evaluated.

    Nothing holds such a teacher to what it knew. If it finds fewer and fewer objects, the student learns that there are
    none. So the method counts the pseudo-labels of an image, averaged over ``window`` steps. If that falls below a
    tenth of what it was in the first ``window`` steps, the run stops, or warns.

    The mean teacher of source-free detection, as IRG's authors describe it as their baseline: Vibashan et al., CVPR
    2023, https://arxiv.org/abs/2303.14092, whose step was read in the authors' code. IRG adds losses on a graph of
    regions, which are not here. The preset ``detection/irg`` has its settings.

    The control (``weight`` 0) is the source detector.

    Args:
        network: images (N, C, H, W) to the outputs of a detector; as the checkpoint's.
        checkpoint: the source model: a checkpoint, or the directory of a run.
        weight: weight of the losses with the teacher's labels (IRG: 1).
        threshold: score above which a detection is a pseudo-label (IRG: 0.9).
        decay: of the teacher, which moves every ``interval`` steps (IRG: 0.9 after each pass over the data; ours:
            0.999 after each step, since a low one drifts).
        collapse: what to do when the pseudo-labels are nearly gone: ``stop`` or ``warn``.
        window: see above (ours: 50).
        lr: see the base (IRG: 0.001).
        teaching: see :class:`~dafw.methods.detection.box_teacher.BoxTeacher`: ``labels``, ``class_thresholds``,
            ``pseudo_boxes``, ``masked``, ``interval``, ``regions``, ``serve``.

    Raises:
        CollapsedTeacher: with ``collapse: stop``, when the log is written.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "weight_decay": 0.0}
    control_difference_reason: ClassVar[str] = "it is the source detector, untouched but for BatchNorm statistics"
    search_space: ClassVar[dict[str, Any]] = {"threshold": (0.5, 0.95), "decay": (0.99, 0.9999), "lr": (1e-5, 1e-2)}
    first_count: Tensor
    recent_count: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        checkpoint: str | None = None,
        weight: NonNegativeFloat = 1.0,
        threshold: ClosedUnitInterval = 0.9,
        decay: ClosedUnitInterval = 0.999,
        collapse: OnCollapse = "stop",
        window: PositiveInt = 50,
        lr: PositiveFloat = 0.001,
        **teaching,
    ) -> None:
        given: dict[str, Any] = {"weight": weight, "threshold": threshold, "decay": decay, "lr": lr}
        super().__init__(network, checkpoint=checkpoint, **given, **teaching)
        choose("model.collapse", collapse, ("stop", "warn"))
        self.collapse, self.window_steps, self._warned = collapse, window, False
        self.register_buffer("first_count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("recent_count", torch.zeros((), dtype=torch.float64))

    def losses(self, batch: Batch) -> Losses:
        """The losses with the teacher's labels."""
        lesson = self.teach(batch)
        self.count(lesson)
        x, sizes = self.strong_target(batch)
        return self.lesson_terms(self.forward_rows(x, 0, sizes=sizes), lesson)

    def statistics_pass(self, batch: Batch) -> None:
        """The pass over the strong views."""
        x, sizes = self.strong_target(batch)
        self.forward_rows(x, 0, sizes=sizes)

    def adapt(self, target: BoxOutputs, batch: Batch) -> Losses:
        """The terms of outputs of the strong views."""
        return self.lesson_terms(target, self.teach(batch))

    # ---- collapse

    def count(self, lesson: Lesson) -> None:
        """Proposes the counts after this step, over all ranks."""
        boxes = [len(one["boxes"]) for one in lesson.labels]
        numbers = torch.tensor([sum(boxes), len(boxes)], dtype=torch.float64).to(self.device, non_blocking=True)
        total, images = sum_over_ranks(numbers).unbind()
        count = total / images
        if self.step < self.window_steps:
            first = self.first_count + (count - self.first_count) / (self.step + 1)
            self.propose(first_count=first, recent_count=first)
        else:
            self.propose(recent_count=self.recent_count + (count - self.recent_count) / self.window_steps)

    def flush(self) -> None:
        """As the base; then says if the teacher has collapsed.

        Raises:
            CollapsedTeacher: if it has, and ``collapse`` is ``stop``.
        """
        super().flush()
        if self.steps_done < self.window_steps or self._warned:
            return
        first, recent = torch.stack([self.first_count, self.recent_count]).tolist()
        if recent >= COLLAPSED * first and first > 0:
            return
        if first == 0:
            said = (
                f"the teacher found no object above the threshold in the first {self.window_steps} steps, so there is "
                "nothing to learn: lower model.threshold"
            )
        else:
            said = (
                f"the teacher has collapsed: {recent:.2g} pseudo-labels an image at step {self.steps_done}, and "
                f"{first:.2g} in the first {self.window_steps} steps; lower model.threshold, then model.weight, then "
                "raise model.decay"
            )
        if self.collapse == "stop":
            raise CollapsedTeacher(said)
        self._warned = True
        warn(said)
