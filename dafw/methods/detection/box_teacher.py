"""The step of a teacher for boxes: it labels weak views of target images, and the student learns from strong ones."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.geometry import bilinear, invert, move_boxes
from dafw.data.padding import valid_positions
from dafw.errors import choose
from dafw.losses.soft_labels import soft_class_loss, soft_score_loss
from dafw.methods.base import Losses, Method
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
#: The terms of a detector's loss that pseudo-labels teach whatever ``pseudo_boxes`` is. All others concern places.
CLASSES = ("class", "objectness")
#: The score of a position of the student's view that the teacher's view does not show.
UNSEEN = -20.0


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


class Lesson(NamedTuple):
    """What a teacher says of the n target images of a step.

    Attributes:
        labels: pseudo-labels in the frame of the strong views: ``boxes`` (k, 4), ``labels`` (k,) and ``scores`` (k,).
        weights: (n,), 1 for an image with a pseudo-label, else 0.
        outputs: of the teacher, in the frame of the weak views.
        maps: (n, 2, 3), from the weak views to the strong ones.
        limits: (n, 2), height and width of the weak views.
    """

    labels: list[dict[str, Tensor]]
    weights: Tensor
    outputs: BoxOutputs
    maps: Tensor
    limits: Tensor


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
        masked: hides blocks of what the student sees of target images, see :class:`Masked`; none if null.
        decay: of the teacher.
        interval: steps between two steps of the teacher.
        regions: with soft labels, the likeliest regions of each image that are compared.
        serve: which of the two is evaluated.
        base: see :class:`~dafw.methods.base.Method`. ``ema_decay`` serves an average of the student.
    """

    kinds: ClassVar[tuple[str, ...]] = ("detection",)
    views = ("strong",)
    default_norm: ClassVar[NormMode] = "separate"
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
        self.weight, self.labels, self.pseudo_boxes = weight, labels, pseudo_boxes
        self.class_thresholds, self.masked = class_thresholds or {}, masked
        self.regions, self.serve = regions, serve
        self.register_buffer("thresholds", torch.full((self.num_classes,), threshold), persistent=False)
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
                self.thresholds[names.index(choose("class in model.class_thresholds", name, names))] = threshold

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
        found = self.network.row_losses(target, lesson.labels)
        factors = {name: self.weight * (self.pseudo_boxes or name in CLASSES) for name in found}
        terms = {f"pseudo_{name}": factor * (lesson.weights * found[name]).mean() for name, factor in factors.items()}
        return _folded(terms, [f"pseudo_{name}" for name in found if self.pseudo_boxes or name in CLASSES])

    def soft_terms(self, target: BoxOutputs, lesson: Lesson) -> Losses:
        """How the student's classes of its regions and its scores of positions differ from the teacher's."""
        detector: Any = self.network
        proposals = detector.proposals(target, self.regions)
        back = invert(lesson.maps)
        seen = [move_boxes(*parts) for parts in zip(proposals, back, lesson.limits, strict=True)]
        counts = torch.cat([(boxes[:, 2:] - boxes[:, :2] >= 1).all(1) for boxes in seen])
        student = detector.regions(target, proposals)
        with torch.no_grad():
            teacher = self.teacher.module.regions(lesson.outputs, seen)
        classes = soft_class_loss(student.logits, teacher.logits, counts, student.exclusive)
        scores = soft_score_loss(*self._positions(target, lesson))
        terms = {"soft_class": self.weight * classes, "soft_objectness": self.weight * scores}
        idle = [values.sum() for maps in target.maps.values() for values in maps] + [student.deltas.sum()]
        return _folded({**terms, "idle": 0 * torch.stack(idle).sum()}, list(terms))

    def _positions(self, target: BoxOutputs, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
        """The student's scores of all positions, the teacher's in the student's frame, and which lie in the images."""
        student, teacher, counts = [], [], []
        name = "objectness" if "objectness" in target.maps else "classes"
        for own, theirs in zip(target.maps[name], lesson.outputs.maps[name], strict=True):
            size = (int(own.shape[2]), int(own.shape[3]))
            steps = theirs.shape[3] / lesson.outputs.canvas[1], theirs.shape[2] / lesson.outputs.canvas[0]
            scale = lesson.maps.new_tensor([[1.0, 1.0, step] for step in steps])
            carried = bilinear(theirs, lesson.maps * scale, size, UNSEEN)
            inside = torch.ones(len(own), *size, dtype=torch.bool, device=own.device)
            if target.sizes is not None:
                inside = valid_positions(target.sizes, target.canvas, size)
            student.append(own.flatten())
            teacher.append(carried.flatten())
            counts.append(inside[:, None].expand_as(own).flatten())
        return torch.cat(student), torch.cat(teacher), torch.cat(counts)


def strong_rows(batch: Batch, rows: slice) -> tuple[Tensor, Tensor | None]:
    """The strong views of some rows of a batch, and their sizes within their padding."""
    sizes = batch.view_sizes.get("strong")
    return batch.views["strong"][rows], None if sizes is None else sizes[rows]


def limits_of(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Height and width of each image (n, 2); of all of ``x`` (n, C, H, W) if no image is padded."""
    if sizes is not None:
        return sizes
    return torch.stack([torch.full((len(x),), side, device=x.device) for side in x.shape[2:]], 1)


def _folded(terms: Losses, kept: list[str]) -> Losses:
    """The kept terms; the others are 0 and join the first, so that each parameter has a gradient on every rank."""
    idle = [value for name, value in terms.items() if name not in kept]
    return {name: sum(idle, start=terms[name]) if name == kept[0] else terms[name] for name in kept}
