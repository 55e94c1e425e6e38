"""Faster R-CNN after its pyramid: proposals from the pyramid, then classes and boxes of them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import concat_box_prediction_layers

from dafw.nn.detector_parts import (
    BoxHead,
    Proposer,
    Targets,
    Term,
    anchors_of,
    clip,
    draw,
    image_of,
    image_sizes,
    term_losses,
    term_parts,
    term_rows,
    to_list,
)
from dafw.nn.focal import focal_cross_entropy
from dafw.nn.precision import full_precision
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.problems.reads import needed_reads


class TwoStage(BoxHead):
    """Proposals and their classes, out of torchvision's two parts.

    The background is class 0 within torchvision's parts, and the first of the scores of regions.

    Args:
        rpn: makes proposals.
        roi_heads: pools, classifies and moves them.
        proposals_in_training: proposals of an image that the losses draw from.
        focal: gamma of the focal loss of the regions' classes; 0 is the cross-entropy.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("class", "box", "objectness", "proposal_box")

    def __init__(self, rpn: Proposer, roi_heads: RoIHeads, proposals_in_training: int, focal: float = 0.0) -> None:
        super().__init__()
        self.rpn: Any = rpn
        self.roi_heads: Any = roi_heads
        self.roi_heads.box_head.rows_are_regions = True  # which batch statistics must know
        self.proposals_in_training, self.focal = proposals_in_training, focal

    def maps(self, levels: list[Tensor]) -> dict[str, list[Tensor]]:
        """The proposals' scores ``objectness`` and moves ``deltas``."""
        objectness, deltas = self.rpn.head(levels)
        return {"objectness": objectness, "deltas": deltas}

    def anchors(self, levels: Mapping[str, Tensor], canvas: tuple[int, int]) -> list[Tensor]:
        """See :func:`~dafw.nn.detector_parts.anchors_of`."""
        return anchors_of(self.rpn.anchor_generator, levels, canvas)

    def losses(self, outputs: BoxOutputs, targets: Targets, over_ranks: bool) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.losses`."""
        return term_losses(self._terms(outputs, targets), over_ranks)

    def row_losses(
        self, outputs: BoxOutputs, targets: Targets, over_ranks: bool, certain: bool = False
    ) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.row_losses`."""
        return term_rows(self._terms(outputs, targets), len(outputs), over_ranks, certain)

    def part_losses(
        self, outputs: BoxOutputs, targets: Targets, parts: int, over_ranks: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.part_losses`."""
        terms = self._terms(outputs, targets)
        return term_losses(terms, over_ranks), term_parts(terms, parts, len(outputs), over_ranks)

    def proposals(self, outputs: BoxOutputs, count: int) -> list[Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.proposals`."""
        return self._filtered(outputs, *self._flat_maps(outputs), count)

    def regions(self, outputs: BoxOutputs, boxes: Sequence[Tensor]) -> Regions:
        """See :meth:`~dafw.nn.detector.Detector.regions`."""
        levels = {name: full_precision(level) for name, level in outputs.levels.items()}
        with needed_reads():
            pooled = self.roi_heads.box_roi_pool(levels, list(boxes), [outputs.canvas] * len(boxes))
        features = self.roi_heads.box_head(pooled)
        logits, deltas = self.roi_heads.box_predictor(features)
        return Regions(features, full_precision(logits), full_precision(deltas), image_of(boxes))

    def detections(self, outputs: BoxOutputs, proposals: int) -> list[dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.detections`."""
        boxes = self.proposals(outputs, proposals)
        found = self.regions(outputs, boxes)
        with needed_reads():
            kept = self.roi_heads.postprocess_detections(found.logits, found.deltas, boxes, image_sizes(outputs))
        return [
            {"boxes": one, "scores": scores, "labels": labels - 1} for one, scores, labels in zip(*kept, strict=True)
        ]

    # ---- steps of torchvision's own forward

    def _flat_maps(self, outputs: BoxOutputs) -> tuple[Tensor, Tensor]:
        """Scores (N M, 1) and moves (N M, 4) of the M anchors of each image."""
        scores, deltas = concat_box_prediction_layers(to_list(outputs, "objectness"), to_list(outputs, "deltas"))
        return scores, deltas

    def _filtered(self, outputs: BoxOutputs, scores: Tensor, deltas: Tensor, count: int) -> list[Tensor]:
        rows = len(outputs)
        boxes = self.rpn.box_coder.decode(deltas.detach(), [torch.cat(outputs.anchors)] * rows)
        found: list[Tensor] = self.rpn.propose(outputs, clip(boxes.view(rows, -1, 4), outputs), scores, count)
        return found

    def _terms(self, outputs: BoxOutputs, targets: Targets) -> dict[str, Term]:
        """The terms of the anchors and regions that are drawn, in torchvision's order of random numbers."""
        dtype = outputs.anchors[0].dtype
        given = [{"boxes": one["boxes"].to(dtype), "labels": one["labels"] + 1} for one in targets]
        scores, deltas = self._flat_maps(outputs)
        proposals = self._filtered(outputs, scores, deltas, self.proposals_in_training)
        of_anchors = self._anchor_terms(outputs, scores, deltas, given)
        return {**self._region_terms(outputs, proposals, given), **of_anchors}

    def _anchor_terms(
        self, outputs: BoxOutputs, scores: Tensor, deltas: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Term]:
        """``compute_loss`` of torchvision's ``RegionProposalNetwork``."""
        anchors = [torch.cat(outputs.anchors)] * len(outputs)
        with needed_reads():
            labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        moves = torch.cat(self.rpn.box_coder.encode(matched, anchors))
        sampler = self.rpn.fg_bg_sampler
        seeds = None if outputs.seeds is None else [2 * seed for seed in outputs.seeds]
        drawn = draw(labels, sampler.batch_size_per_image, sampler.positive_fraction, seeds)
        positive, negative = (
            torch.cat([places + row * len(anchors[0]) for row, places in enumerate(kind)]) for kind in drawn
        )
        either = torch.cat([positive, negative])
        truth = torch.cat(labels).to(scores.dtype)  # torchvision's labels are float32 whatever the scores are
        image, of_positive = torch.cat([image_of(kind) for kind in drawn]), image_of(drawn[0])
        counts = [len(above) + len(below) for above, below in zip(*drawn, strict=True)]
        drawn_scores = scores.flatten()[either]
        objectness = partial(_binary, drawn_scores, truth[either])
        box = partial(_shift, deltas[positive], moves[positive])
        return {
            "objectness": Term(objectness, image, counts, True, drawn_scores.sigmoid),
            "proposal_box": Term(box, of_positive, counts, False),
        }

    def _region_terms(
        self, outputs: BoxOutputs, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Term]:
        """``select_training_samples`` of torchvision's ``RoIHeads``, and ``fastrcnn_loss``."""
        head, true = self.roi_heads, [one["boxes"] for one in targets]
        boxes = head.add_gt_proposals(proposals, true)
        matched, labels = head.assign_targets_to_proposals(boxes, true, [one["labels"] for one in targets])
        sampler = head.fg_bg_sampler
        seeds = None if outputs.seeds is None else [2 * seed + 1 for seed in outputs.seeds]
        drawn = draw(labels, sampler.batch_size_per_image, sampler.positive_fraction, seeds)
        places = [torch.cat(kinds).sort().values for kinds in zip(*drawn, strict=True)]
        boxes, labels, matched = ([a[b] for a, b in zip(one, places, strict=True)] for one in (boxes, labels, matched))
        right = [a[b] if len(a) else a.new_zeros((len(b), 4)) for a, b in zip(true, matched, strict=True)]
        moves = torch.cat(head.box_coder.encode(right, boxes))
        found, truth = self.regions(outputs, boxes), torch.cat(labels)
        counts = [len(one) for one in boxes]
        with needed_reads():
            positive = torch.where(truth > 0)[0]
        own = found.deltas.reshape(len(truth), -1, 4)[positive, truth[positive]]
        classes = partial(focal_cross_entropy, found.logits, truth, self.focal)
        return {
            "class": Term(classes, found.image, counts, True, partial(_likeliest, found.logits)),
            "box": Term(partial(_shift, own, moves[positive]), found.image[positive], counts, False),
        }


def _binary(scores: Tensor, truth: Tensor, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, truth, reduction=reduction)


def _shift(moves: Tensor, right: Tensor, reduction: str) -> Tensor:
    return F.smooth_l1_loss(moves, right, beta=1 / 9, reduction=reduction)


def _likeliest(logits: Tensor) -> Tensor:
    return logits.detach().softmax(1).amax(1)
