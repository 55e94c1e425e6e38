"""The step of a teacher for boxes: it labels weak views of target images, and the student learns from strong ones."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.methods.base import Losses, Method
from dafw.methods.detection.lessons import Lesson, limits_of, soft_positions, soft_regions, strong_rows
from dafw.nn.class_mix import BLOCKS, hide_blocks
from dafw.nn.distributed import sum_over_ranks
from dafw.nn.draws import draw_rows, on_device
from dafw.nn.norm import NormMode
from dafw.nn.teacher import Teacher
from dafw.problems import NetworkBase
from dafw.problems.outputs import BoxOutputs
from dafw.ranges import Checked, ClosedUnitInterval, NonNegativeFloat, PositiveInt

Labels = Literal["hard", "soft", "both"]
Served = Literal["teacher", "student"]
Weights = Literal["alike", "certainty"]
#: The terms of a detector's loss that pseudo-labels teach whatever ``pseudo_boxes`` is. All others concern places.
CLASSES = ("class", "objectness")


@dataclass(frozen=True)
class Masked(Checked):
    """MIC: blocks of the target images that the student sees are hidden.

    Hoyer et al., MIC, CVPR 2023, https://arxiv.org/abs/2212.01322. Hidden pixels have the mean colour of the network's
    normalisation.

    Args:
        ratio: share of hidden blocks (paper: 0.5 for boxes).
        block: side of a block in pixels (paper: 32 for boxes).
    """

    config_key: ClassVar[str] = "model.masked"
    ratio: ClosedUnitInterval = 0.5
    block: PositiveInt = 32


class BoxTeacher(Method, abstract=True):
    """A moving average of the detector labels target images, from which the detector learns.

    The teacher sees the target images as ``data.augment`` makes them, in evaluation mode and without a graph. The
    student sees the view ``strong`` of the same images. The affine maps of the views carry boxes from the one frame to
    the other.

    Args:
        network: images (N, C, H, W) to the outputs of a detector.
        weight: weight of the losses with the teacher's labels.
        labels: ``hard``, boxes above a score; ``soft``, the teacher's probabilities for the student's regions and
            positions; ``both``.
        threshold: score above which a detection of the teacher is a pseudo-label; at 1 none is.
        class_thresholds: thresholds of single classes by name, in place of ``threshold``.
        pseudo_boxes: learn places from pseudo-labels too, and not only classes and what is an object.
        label_weights: how much hard labels count: ``alike``; or ``certainty``, the loss of the class of a region times
            the student's largest probability of a class, and the objectness of an anchor times the student's
            probability of an object (MIC, whose code calls it ``prob``).
        masked: hides blocks of what the student sees of target images, see :class:`Masked`; none if null.
        decay: of the teacher.
        interval: steps between two steps of the teacher.
        regions: with soft labels, the likeliest regions of each image that are compared.
        serve: which of the two is evaluated.
        base: see :class:`~dafw.methods.base.Method`. ``ema_decay`` serves an average of the student.

    Raises:
        UserError: for soft labels of places, or labels that count by certainty, of a detector without regions of its
            own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("detection",)
    views = ("strong",)
    default_norm: ClassVar[NormMode] = "separate"
    network: Any
    thresholds: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        weight: NonNegativeFloat = 4.0,
        labels: Labels = "hard",
        threshold: ClosedUnitInterval = 0.7,
        class_thresholds: dict[str, ClosedUnitInterval] | None = None,
        pseudo_boxes: bool = False,
        label_weights: Weights = "alike",
        masked: Masked | None = None,
        decay: ClosedUnitInterval = 0.9996,
        interval: PositiveInt = 1,
        regions: PositiveInt = 512,
        serve: Served = "teacher",
        **base,
    ) -> None:
        super().__init__(network, **base)
        choose("model.labels", labels, ("hard", "soft", "both"))
        choose("model.serve", serve, ("teacher", "student"))
        choose("model.label_weights", label_weights, ("alike", "certainty"))
        self.weight, self.labels, self.pseudo_boxes, self.label_weights = weight, labels, pseudo_boxes, label_weights
        self.class_thresholds, self.masked = class_thresholds or {}, masked
        self.regions, self.serve = regions, serve
        self.two_stages = "objectness" in self.network.loss_names
        if labels == "soft" and pseudo_boxes and not self.two_stages:
            raise UserError(
                "model.pseudo_boxes with model.labels soft compares the moves of regions, and this detector has no "
                "regions of its own: leave it out, or set model.network.arch to fasterrcnn"
            )
        if label_weights == "certainty" and (labels == "soft" or not self.two_stages):
            lacking = "model.labels soft has none" if labels == "soft" else "this detector has no regions of its own"
            raise UserError(
                f"model.label_weights certainty weighs the hard labels of regions, and {lacking}: leave it out"
            )
        self.register_buffer("thresholds", _above(torch.full((self.num_classes,), threshold)), persistent=False)
        self.teacher = Teacher(network, decay, interval=interval)

    def setup(self, stage: str) -> None:
        """Finds the classes that have thresholds of their own.

        Raises:
            UserError: for a name that is no class.
        """
        super().setup(stage)
        if stage == "fit" and self.class_thresholds:
            names = self.data.known_names
            for name, threshold in self.class_thresholds.items():
                place = names.index(choose("class in model.class_thresholds", name, names))
                self.thresholds[place] = _above(torch.tensor(threshold))

    @property
    def eval_network(self) -> Any:
        """The teacher, or what ``serve`` and ``ema_decay`` say."""
        return self.teacher.module if self.serve == "teacher" and self.weight_average is None else super().eval_network

    # ---- what passes through the student

    @torch.no_grad()
    def strong_target(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The strong views of the n_t target rows, some of whose blocks may be hidden, and their sizes."""
        x, sizes = strong_rows(batch, slice(batch.num_source, None))
        if self.masked is not None:
            numbers = draw_rows(self.data_seed, self.step, "blocks", len(x), BLOCKS, BLOCKS)
            colour = -self.network.shift / self.network.scale
            places = on_device(numbers, self.network.shift)
            x = hide_blocks(x, places, sizes, self.masked.block, self.masked.ratio, colour)
        return x, sizes

    # ---- what the teacher says

    @torch.no_grad()
    def teach(self, batch: Batch) -> Lesson:
        """What the teacher says of the target rows of a batch."""
        rows = slice(batch.num_source, None)
        x, sizes = batch.x[rows], None if batch.sizes is None else batch.sizes[rows]
        outputs = self.forward_rows(x, None, self.teacher.module, sizes)
        strong, strong_sizes = strong_rows(batch, rows)
        maps, size = batch.maps["strong"][rows], (int(strong.shape[2]), int(strong.shape[3]))
        problem: Any = self.problem.bind(self.teacher.module)
        labels, _ = problem.pseudo_labels(outputs, self.thresholds)
        labels = problem.carry(labels, maps, size, strong_sizes)
        weights = torch.tensor([float(len(one["boxes"]) > 0) for one in labels]).to(x.device, non_blocking=True)
        if self.logs_this_step:
            self._diagnose_labels(labels)
        return Lesson(labels, weights, outputs, maps, limits_of(x, sizes))

    def _diagnose_labels(self, labels: list[dict[str, Tensor]]) -> None:
        """The pseudo-labels of an image, their mean score (nan if there is none), and the share of images without."""
        counts = [len(one["boxes"]) for one in labels]
        scores = torch.cat([one["scores"] for one in labels]).sum().double()
        numbers = torch.tensor([len(counts), sum(counts), counts.count(0)], dtype=torch.float64, device=scores.device)
        images, boxes, empty, score = sum_over_ranks(torch.cat([numbers, scores[None]])).unbind()
        self.diagnose("pseudo_boxes", boxes / images)
        self.diagnose("pseudo_score", score / boxes)
        self.diagnose("images_without_pseudo_boxes", empty / images)

    # ---- what the student learns of it

    def lesson_terms(self, target: BoxOutputs, lesson: Lesson) -> Losses:
        """The weighted terms of the student's outputs of the strong views of the target rows."""
        terms: Losses = {}
        if self.labels != "soft":
            terms |= self.hard_terms(target, lesson)
        if self.labels != "hard":
            terms |= self.soft_terms(target, lesson)
        return terms

    def hard_terms(self, target: BoxOutputs, lesson: Lesson) -> Losses:
        """The detector's losses with the pseudo-labels, means over all images; one without any counts as 0."""
        how = {"certain": True} if self.label_weights == "certainty" else {}
        found = self.network.row_losses(target, lesson.labels, **how)
        factors = {name: self.weight * (self.pseudo_boxes or name in CLASSES) for name in found}
        terms = {f"pseudo_{name}": factor * (lesson.weights * found[name]).mean() for name, factor in factors.items()}
        return _folded(terms, [f"pseudo_{name}" for name in found if self.pseudo_boxes or name in CLASSES])

    def soft_terms(self, target: BoxOutputs, lesson: Lesson) -> Losses:
        """How the student's scores differ from the teacher's, see :mod:`dafw.methods.detection.lessons`."""
        terms = {"soft_objectness" if self.two_stages else "soft_class": soft_positions(target, lesson)}
        idle = [values.sum() for maps in target.maps.values() for values in maps]
        if self.two_stages:
            found = soft_regions(self.network, self.teacher.module, target, lesson, self.regions)
            idle.append(found.pop("moves"))
            terms |= found if self.pseudo_boxes else {"soft_class": found["soft_class"]}
        terms = {name: self.weight * value for name, value in terms.items()}
        return _folded({**terms, "idle": 0 * torch.stack(idle).sum()}, list(terms))


def _above(thresholds: Tensor) -> Tensor:
    """The least numbers above thresholds, so that nothing is above 1."""
    return torch.nextafter(thresholds, torch.full_like(thresholds, 2))


def _folded(terms: Losses, kept: list[str]) -> Losses:
    """The kept terms; the others are 0 and join the first, so that each parameter has a gradient on every rank."""
    idle = [value for name, value in terms.items() if name not in kept]
    return {name: sum(idle, start=terms[name]) if name == kept[0] else terms[name] for name in kept}
