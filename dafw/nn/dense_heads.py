"""FCOS and RetinaNet after their pyramid: classes and boxes of each anchor."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from dafw.nn.detector_parts import BoxHead, Proposer, Targets, anchors_of, clip, image_of, image_sizes
from dafw.nn.distributed import world_size
from dafw.nn.precision import full_precision
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.problems.ranks import share_of_all, weight_of_rank
from dafw.problems.reads import begin_needed, end_needed, needed_reads

#: Torchvision's names of the terms, and ours.
TERMS = {"classification": "class", "bbox_regression": "box", "bbox_ctrness": "centre"}
FCOS_SIZE = 8 * 2**0.5
"""The side of the boxes that a level of FCOS is for, over its stride: those between 8 and 16 strides."""


class _NoBackbone(nn.Module):
    """In the place of the backbone of a model of torchvision, of which the head alone is used."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


class DenseHead(BoxHead):
    """The part of a model of torchvision that follows its pyramid.

    The maps are ``classes`` (N, A K, h, w), ``deltas`` (N, A 4, h, w), and ``centre`` (N, A, h, w) of FCOS.

    Args:
        model: an :class:`FCOS` or a :class:`RetinaNet`.
        pool: pools regions from the levels.
    """

    #: Torchvision's name of each map, and ours.
    names: ClassVar[Mapping[str, str]]

    def __init__(self, model: Any, pool: MultiScaleRoIAlign) -> None:
        super().__init__()
        self.model, self.pool = model, pool
        counts = {"training": model.topk_candidates, "testing": model.topk_candidates}
        self.proposer: Any = Proposer(
            model.anchor_generator, nn.Identity(), 0.7, 0.3, 256, 0.5, counts, counts, nms_thresh=0.7
        )

    # ---- what FCOS and RetinaNet do in their own ways

    def scores(self, outputs: BoxOutputs) -> Tensor:
        """How likely an object of any class is at each anchor, (N, M)."""
        raise NotImplementedError

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4) of moves (n, 4) of anchors."""
        raise NotImplementedError

    def shapes(self, outputs: BoxOutputs) -> Tensor:
        """Width and height of the boxes that each anchor of each level is for, (L, A, 2)."""
        raise NotImplementedError

    # ---- what they share

    def maps(self, levels: list[Tensor]) -> dict[str, list[Tensor]]:
        """See :class:`DenseHead`."""
        sides = [level.shape[2:] for level in levels]
        per_position = self.model.anchor_generator.num_anchors_per_location()
        counts = [h * w * anchors for (h, w), anchors in zip(sides, per_position, strict=True)]
        found = self.model.head(levels)
        return {
            ours: [
                part.unflatten(1, (*side, -1)).flatten(3).permute(0, 3, 1, 2)
                for part, side in zip(found[theirs].split(counts, 1), sides, strict=True)
            ]
            for theirs, ours in self.names.items()
        }

    def anchors(self, levels: Mapping[str, Tensor], canvas: tuple[int, int]) -> list[Tensor]:
        """See :func:`~dafw.nn.detector_parts.anchors_of`."""
        return anchors_of(self.model.anchor_generator, levels, canvas)

    def by_anchor(self, outputs: BoxOutputs, name: str) -> list[Tensor]:
        """A map as values (N, m_i, k) of the m_i anchors of each level, in at least float32."""
        return [
            full_precision(one).permute(0, 2, 3, 1).reshape(len(one), len(anchors), -1)
            for one, anchors in zip(outputs.maps[name], outputs.anchors, strict=True)
        ]

    def head_outputs(self, outputs: BoxOutputs) -> dict[str, Tensor]:
        """What torchvision's head returns of all levels together."""
        return {theirs: torch.cat(self.by_anchor(outputs, ours), 1) for theirs, ours in self.names.items()}

    def compute(self, outputs: BoxOutputs, targets: list[dict[str, Tensor]], *rest: Any) -> dict[str, Tensor]:
        """What ``model.compute_loss`` returns, under our names, of images that may be fewer than those of the batch."""
        anchors = [torch.cat(outputs.anchors)] * len(outputs)
        given = begin_needed(self.head_outputs(outputs))
        with needed_reads():
            found = self.model.compute_loss(targets, given, anchors, *rest)
        count = {name: found.pop(name) for name in ("count",) if name in found}
        return {**{TERMS[name]: value for name, value in end_needed(found).items()}, **count}

    def compute_parts(
        self, outputs: BoxOutputs, targets: list[dict[str, Tensor]], parts: int, *rest: Any
    ) -> dict[str, Tensor]:
        """:meth:`compute` of each of some parts of as many images, one after the other -> (parts,) by name."""
        size = len(outputs) // parts
        rows = [slice(start, start + size) for start in range(0, parts * size, size)]
        each = [self.compute(outputs[part], targets[part], *rest) for part in rows]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def proposals(self, outputs: BoxOutputs, count: int) -> list[Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.proposals`. They are the boxes of the anchors with the best class."""
        with torch.no_grad():
            deltas = torch.cat(self.by_anchor(outputs, "deltas"), 1)
            anchors = torch.cat(outputs.anchors).expand_as(deltas)
            boxes = clip(self.decode(deltas.flatten(0, 1), anchors.flatten(0, 1)).view_as(deltas), outputs)
            empty = (boxes[..., 2:] - boxes[..., :2] < self.proposer.min_size).any(2)
            scores = self.scores(outputs).masked_fill(empty, -torch.inf)  # so that they take nobody's place
            found: list[Tensor] = self.proposer.propose(outputs, boxes, scores, count)
            return found

    def regions(self, outputs: BoxOutputs, boxes: Sequence[Tensor]) -> Regions:
        """See :meth:`~dafw.nn.detector.Detector.regions`.

        Features are the mean of the level that fits the size of the box, over the box. Scores and moves are those of
        the anchor at the middle of the box whose shape is nearest to it.
        """
        image = image_of(boxes)
        levels = {name: full_precision(level) for name, level in outputs.levels.items()}
        with needed_reads():
            features = self.pool(levels, list(boxes), [outputs.canvas] * len(boxes)).flatten(1)
        place = image, self._nearest(outputs, torch.cat(list(boxes)))
        logits, deltas = (torch.cat(self.by_anchor(outputs, name), 1)[place] for name in ("classes", "deltas"))
        return Regions(features, logits, deltas, image, exclusive=False)

    def _nearest(self, outputs: BoxOutputs, boxes: Tensor) -> Tensor:
        """The number of the anchor (R,) that is nearest to each box, among the M anchors of its image."""
        shapes = self.shapes(outputs)
        sides = boxes[:, 2:] - boxes[:, :2]
        overlap = torch.minimum(sides[:, None], shapes.flatten(0, 1)).prod(2)
        union = sides.prod(1)[:, None] + shapes.flatten(0, 1).prod(1) - overlap
        best = (overlap / union.clamp_min(1e-6)).argmax(1)
        per_position = shapes.shape[1]
        level, kind = best.div(per_position, rounding_mode="floor"), best % per_position
        grids = [level_map.shape[2:] for level_map in outputs.levels.values()]
        starts = accumulate([0, *(len(one) for one in outputs.anchors[:-1])])
        height, width = outputs.canvas
        facts = [[h, w, height // h, width // w, first] for (h, w), first in zip(grids, starts, strict=True)]
        rows, columns, down, across, start = torch.tensor(facts, device=boxes.device)[level].unbind(1)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        column = (middle[:, 0] / across).long().clamp_min(0).minimum(columns - 1)
        row = (middle[:, 1] / down).long().clamp_min(0).minimum(rows - 1)
        return start + (row * columns + column) * per_position + kind

    def detections(self, outputs: BoxOutputs, proposals: int) -> list[dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.detections`."""
        levels = {theirs: self.by_anchor(outputs, ours) for theirs, ours in self.names.items()}
        anchors = [outputs.anchors] * len(outputs)
        with needed_reads():
            found: list[dict[str, Tensor]] = self.model.postprocess_detections(levels, anchors, image_sizes(outputs))
        return found

    def _given(self, outputs: BoxOutputs, targets: Targets) -> list[dict[str, Tensor]]:
        dtype = outputs.anchors[0].dtype
        return [{"boxes": one["boxes"].to(dtype), "labels": one["labels"]} for one in targets]


class Fcos(DenseHead):
    """FCOS: Tian et al., ICCV 2019, https://arxiv.org/abs/1904.01355. One anchor at each position."""

    loss_names: ClassVar[tuple[str, ...]] = ("class", "box", "centre")
    names: ClassVar[Mapping[str, str]] = {
        "cls_logits": "classes",
        "bbox_regression": "deltas",
        "bbox_ctrness": "centre",
    }

    class Head(FCOSHead):  # type: ignore[misc]
        """Torchvision's head, whose losses come with the number of anchors that they are means over."""

        def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> Any:
            """Torchvision's three losses, and ``count``."""
            found = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
            return {**found, "count": (torch.stack(matched_idxs) >= 0).sum()}

    def losses(self, outputs: BoxOutputs, targets: Targets, over_ranks: bool) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.losses`."""
        found = self.compute(outputs, self._given(outputs, targets), [len(one) for one in outputs.anchors])
        count = found.pop("count").to(found["class"].dtype)
        if not over_ranks or world_size() == 1:
            return found
        weight = count.clamp_min(1) * share_of_all(count)
        return {name: weight * value for name, value in found.items()}

    def row_losses(
        self, outputs: BoxOutputs, targets: Targets, over_ranks: bool, certain: bool = False
    ) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.row_losses`."""
        given = self._given(outputs, targets)
        per_level = [len(one) for one in outputs.anchors]
        found = self.compute_parts(outputs, given, len(given), per_level)
        count = found.pop("count").to(found["class"].dtype)
        total = count.sum()
        share = share_of_all(total) if over_ranks else total.clamp_min(1).reciprocal()
        weight = len(given) * count.clamp_min(1) * share
        return {name: weight * value for name, value in found.items()}

    def part_losses(
        self, outputs: BoxOutputs, targets: Targets, parts: int, over_ranks: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.part_losses`."""
        per_level = [len(one) for one in outputs.anchors]
        found = self.compute_parts(outputs, self._given(outputs, targets), parts, per_level)
        count = found.pop("count").to(found["class"].dtype)
        counts = torch.cat([count.sum()[None], count])
        share = share_of_all(counts) if over_ranks else counts.clamp_min(1).reciprocal()
        sums = {name: count.clamp_min(1) * value for name, value in found.items()}
        whole = {name: value.sum() * share[0] for name, value in sums.items()}
        return whole, {name: value * share[1:] for name, value in sums.items()}

    def scores(self, outputs: BoxOutputs) -> Tensor:
        """The geometric mean of the probability of the likeliest class and that of being at an object's middle."""
        classes, centre = (torch.cat(self.by_anchor(outputs, name), 1) for name in ("classes", "centre"))
        return (classes.amax(2).sigmoid() * centre[..., 0].sigmoid()).sqrt()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4)."""
        boxes: Tensor = self.model.box_coder.decode(deltas, anchors)
        return boxes

    def shapes(self, outputs: BoxOutputs) -> Tensor:
        """Squares of :data:`FCOS_SIZE` strides."""
        anchors = torch.stack([one[0] for one in outputs.anchors])
        return (FCOS_SIZE * (anchors[:, 2:] - anchors[:, :2]))[:, None]


class Retina(DenseHead):
    """RetinaNet: Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002. Nine anchors at each position."""

    loss_names: ClassVar[tuple[str, ...]] = ("class", "box")
    names: ClassVar[Mapping[str, str]] = {"cls_logits": "classes", "bbox_regression": "deltas"}

    def losses(self, outputs: BoxOutputs, targets: Targets, over_ranks: bool) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.losses`."""
        found = self.compute(outputs, self._given(outputs, targets))
        weight = weight_of_rank(len(outputs), found["class"]) if over_ranks else 1.0
        return {name: weight * value for name, value in found.items()}

    def row_losses(
        self, outputs: BoxOutputs, targets: Targets, over_ranks: bool, certain: bool = False
    ) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.row_losses`."""
        given = self._given(outputs, targets)
        found = self.compute_parts(outputs, given, len(given))
        weight = weight_of_rank(len(given), found["class"]) if over_ranks else 1.0
        return {name: weight * value for name, value in found.items()}

    def part_losses(
        self, outputs: BoxOutputs, targets: Targets, parts: int, over_ranks: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.part_losses`."""
        found = self.compute_parts(outputs, self._given(outputs, targets), parts)
        weight = weight_of_rank(len(outputs), found["class"]) if over_ranks else 1.0
        found = {name: weight * value for name, value in found.items()}
        return {name: value.mean() for name, value in found.items()}, found

    def scores(self, outputs: BoxOutputs) -> Tensor:
        """The score of the likeliest class."""
        return torch.cat(self.by_anchor(outputs, "classes"), 1).amax(2)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4)."""
        boxes: Tensor = self.model.box_coder.decode_single(deltas, anchors)
        return boxes

    def shapes(self, outputs: BoxOutputs) -> Tensor:
        """Those of the anchors."""
        count = self.model.anchor_generator.num_anchors_per_location()[0]
        anchors = torch.stack([one[:count] for one in outputs.anchors])
        return anchors[..., 2:] - anchors[..., :2]


def make_fcos(channels: int, num_classes: int, anchors: AnchorGenerator, **options: Any) -> FCOS:
    """Torchvision's FCOS without a backbone, for labels from 0. Groups of its normalisation have 8 channels."""
    head, norm = Fcos.Head(channels, 1, num_classes), partial(nn.GroupNorm, channels // 8)
    if channels != 256:  # for which torchvision's own 32 groups are such
        head.classification_head = FCOSClassificationHead(channels, 1, num_classes, norm_layer=norm)
        head.regression_head = FCOSRegressionHead(channels, 1, norm_layer=norm)
    return FCOS(_NoBackbone(channels), num_classes, anchor_generator=anchors, head=head, **options)


def make_retina(
    channels: int, num_classes: int, anchors: AnchorGenerator, head: RetinaNetHead | None = None, **options: Any
) -> RetinaNet:
    """Torchvision's RetinaNet without a backbone, for labels from 0.

    Args:
        channels: d of the maps.
        num_classes: K.
        anchors: of all levels.
        head: ``None``: with group normalisation, as torchvision's second version has it; groups have 8 channels.
        options: of the model.
    """
    if head is None:
        norm = partial(nn.GroupNorm, max(channels // 8, 1))
        head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm)
    return RetinaNet(_NoBackbone(channels), num_classes, anchor_generator=anchors, head=head, **options)
