"""Detectors: one pass that sees no label, from which losses, proposals and detections follow."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from dafw.errors import UserError, choose
from dafw.nn.precision import full_precision
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import BoxOutputs
from dafw.ranges import ClosedUnitInterval, PositiveInt

Targets = Sequence[Mapping[str, Tensor]]
Arch = Literal["fasterrcnn"]
BackboneName = Literal["tiny"]
LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


class TinyPyramid(nn.Module):
    """Four convolutions of stride 2 and a feature pyramid of the last two: (N, C, H, W) to two maps of d channels.

    Args:
        in_channels: C.
        out_channels: d.
    """

    strides = (8, 16)

    def __init__(self, in_channels: int, out_channels: int = 32) -> None:
        super().__init__()
        widths = [in_channels, 16, 24, 32, 48]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in pairwise(widths)
        )
        self.pyramid = FeaturePyramidNetwork(widths[-2:], out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``"0"`` and ``"1"`` of strides 8 and 16."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels: dict[str, Tensor] = self.pyramid({str(i): level for i, level in enumerate(maps[-2:])})
        return dict(levels)


class Detector(NetworkBase):
    """Faster R-CNN out of torchvision's parts: Ren et al., NeurIPS 2015, https://arxiv.org/abs/1506.01497.

    :meth:`forward` sees images alone. :meth:`losses`, :meth:`proposals`, :meth:`region_features` and
    :meth:`detections` start from its outputs, or from a slice of them, and pass no image again. Classes count from 0
    here and from 1 within torchvision's parts, where 0 is the background.

    Args:
        arch: ``fasterrcnn``.
        backbone: ``tiny``, a pyramid of two levels with batch norm; the whole detector has 0.2 M parameters then.
        anchor_sizes: sides in pixels of the anchors of each level, whose shapes are 1:2, 1:1 and 2:1.
        anchors_per_image: anchors of an image that the loss of the proposals samples, at most half of them positive.
        regions_per_image: proposals of an image that the loss of the classes samples, at most a quarter positive.
        proposals_in_training: proposals of an image that remain after non-maximum suppression, for the losses.
        proposals_in_test: the same, for detections.
        score_threshold: detections of lower scores are left out.
        nms_threshold: overlap above which the lower of two detections of a class is left out.
        detections_per_image: the most that remain of an image.
        in_channels: channels C of an image.
        base: see :class:`~dafw.problems.NetworkBase`.

    Raises:
        UserError: unknown names, or anchors for another number of levels.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self,
        arch: Arch = "fasterrcnn",
        backbone: BackboneName = "tiny",
        *,
        anchor_sizes: list[list[int]] | None = None,
        anchors_per_image: PositiveInt = 256,
        regions_per_image: PositiveInt = 512,
        proposals_in_training: PositiveInt = 2000,
        proposals_in_test: PositiveInt = 1000,
        score_threshold: ClosedUnitInterval = 0.05,
        nms_threshold: ClosedUnitInterval = 0.5,
        detections_per_image: PositiveInt = 100,
        in_channels: int = 3,
        **base,
    ) -> None:
        choose("arch", arch, ("fasterrcnn",))
        choose("backbone", backbone, ("tiny",))
        pyramid = TinyPyramid(in_channels)
        sizes = anchor_sizes or [[3 * stride] for stride in pyramid.strides]
        if len(sizes) != len(pyramid.strides):
            raise UserError(f"anchor_sizes has {len(sizes)} lists for the {len(pyramid.strides)} levels of {backbone}")
        super().__init__(pyramid, pyramid.out_channels, in_channels=in_channels, **base)
        self.strides, self.stride = pyramid.strides, max(pyramid.strides)
        self.level_names = [str(i) for i in range(len(pyramid.strides))]
        self.regions_per_image, self.detections_per_image = regions_per_image, detections_per_image
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        anchors = AnchorGenerator(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * len(sizes))
        counts = {"training": proposals_in_training, "testing": proposals_in_test}
        rpn_head = RPNHead(self.num_features, anchors.num_anchors_per_location()[0])
        self.rpn: Any = RegionProposalNetwork(
            anchors, rpn_head, 0.7, 0.3, anchors_per_image, 0.5, counts, counts, nms_thresh=0.7
        )
        self.register_module("head", self._modules.pop("head"))  # the order of the pass: the head comes last

    def make_head(self, num_classes: int) -> nn.Module:
        """Torchvision's ``RoIHeads``: pooling, two linear layers, scores of ``num_classes`` + 1 and their boxes."""
        side, width = 5, 96
        pool = MultiScaleRoIAlign(self.level_names, output_size=side, sampling_ratio=2)
        depths = [int(math.log2(stride)) for stride in self.strides]
        # torchvision measures both on its first batch, for which the host waits
        pool.scales = [2.0**-depth for depth in depths]
        pool.map_levels = initLevelMapper(depths[0], depths[-1])
        heads: nn.Module = RoIHeads(
            pool,
            TwoMLPHead(self.num_features * side**2, width),
            FastRCNNPredictor(width, num_classes + 1),
            0.5,
            0.5,
            self.regions_per_image,
            0.25,
            None,
            self.score_threshold,
            self.nms_threshold,
            self.detections_per_image,
        )
        return heads

    # ---- the pass

    def forward(self, x: Any, sizes: Tensor | None = None) -> BoxOutputs:
        """Feature maps, the proposals' scores (``objectness``) and moves (``deltas``) on them, and the anchors.

        Args:
            x: images (N, C, H, W), padded to one size. Sides that are no multiple of the largest stride are padded.
            sizes: (N, 2) int64, height and width of each image without its padding; ``None``: every image fills ``x``.
        """
        images = self.normalise(x, sizes)
        height, width = images.shape[2:]
        canvas = math.ceil(height / self.stride) * self.stride, math.ceil(width / self.stride) * self.stride
        if canvas != (height, width):
            images = F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
            if sizes is None:
                sizes = torch.tensor([[height, width]], device=images.device).expand(images.shape[0], 2)
        levels = self.pass_backbone(images)
        objectness, deltas = self.rpn.head(list(levels.values()))
        return BoxOutputs(
            levels, {"objectness": objectness, "deltas": deltas}, self.anchors(levels, canvas), canvas, sizes
        )

    def anchors(self, levels: dict[str, Tensor], canvas: tuple[int, int]) -> list[Tensor]:
        """Boxes (h_i w_i A, 4) of each level, row by row, in at least float32 whatever the autocast."""
        maps = [full_precision(level.new_empty((1, 1, *level.shape[2:]))) for level in levels.values()]
        images = ImageList(maps[0].new_empty((1, 1, *canvas)), [canvas])
        (anchors,) = self.rpn.anchor_generator(images, maps)
        per_position = self.rpn.anchor_generator.num_anchors_per_location()
        counts = [one.shape[2] * one.shape[3] * count for one, count in zip(maps, per_position, strict=True)]
        return list(anchors.split(counts))

    # ---- what follows from it

    def losses(self, outputs: BoxOutputs, targets: Targets) -> dict[str, Tensor]:
        """Torchvision's four losses, bit for bit, whether the network is in training or in evaluation mode.

        The anchors and proposals that count are drawn from torch's default generator.

        Args:
            outputs: of N images.
            targets: N times ``boxes`` (n, 4), as x1, y1, x2, y2 in pixels with positive sides, and ``labels`` (n,)
                int64 from 0.

        Returns:
            Scalars ``loss_classifier``, ``loss_box_reg``, ``loss_objectness`` and ``loss_rpn_box_reg``.
        """
        return {name: loss for name, (loss, _) in self.losses_with_counts(outputs, targets).items()}

    def losses_with_counts(self, outputs: BoxOutputs, targets: Targets) -> dict[str, tuple[Tensor, int]]:
        """:meth:`losses`, each with the number of drawn anchors or proposals that it is a mean over.

        Ranks that draw different numbers need them, so that all of theirs count alike.
        """
        targets = self._for_torchvision(outputs, targets)
        scores, deltas, labels, moves, proposals = self._assigned(outputs, targets)
        objectness, rpn_box, anchors = self._anchor_losses(scores, deltas, labels, moves)
        classes, boxes, region_labels, region_moves = self._sampled_regions(outputs, proposals, targets)
        classifier, box = fastrcnn_loss(classes, boxes, region_labels, region_moves)
        regions = sum(map(len, region_labels))
        losses = ((classifier, regions), (box, regions), (objectness, anchors), (rpn_box, anchors))
        return dict(zip(LOSSES, losses, strict=True))

    def host_reads(self, rows: int) -> int:
        """How many values the host reads for the losses of so many images that have boxes and no padding.

        Torchvision reads how many anchors and proposals it draws, and how many remain after the small ones and those
        that overlap are left out. An image without a box costs one less. Padded images cost one more together.
        """
        return 8 * rows + 5

    def row_losses(self, outputs: BoxOutputs, targets: Targets) -> dict[str, Tensor]:
        """The four losses of each image, (N,) each; their means are :meth:`losses` of the same random state.

        Each anchor or proposal that was drawn has the same weight, so an image with more of them has a larger share.
        """
        targets = self._for_torchvision(outputs, targets)
        scores, deltas, labels, moves, proposals = self._assigned(outputs, targets)
        count = len(labels)
        drawn = [torch.cat(chosen).bool() for chosen in self.rpn.fg_bg_sampler(labels)]
        either, image = drawn[0] | drawn[1], _image_of(labels)
        truth, move = torch.cat(labels).to(scores.dtype), torch.cat(moves)
        bce = F.binary_cross_entropy_with_logits(scores.flatten()[either], truth[either], reduction="none")
        shift = F.smooth_l1_loss(deltas[drawn[0]], move[drawn[0]], beta=1 / 9, reduction="none").sum(1)
        classes, boxes, region_labels, region_moves = self._sampled_regions(outputs, proposals, targets)
        truth, region = torch.cat(region_labels), _image_of(region_labels)
        positive = torch.where(truth > 0)[0]
        entropy = F.cross_entropy(classes, truth, reduction="none")
        own = boxes.reshape(len(truth), -1, 4)[positive, truth[positive]]
        moved = F.smooth_l1_loss(own, torch.cat(region_moves)[positive], beta=1 / 9, reduction="none").sum(1)
        parts = (
            (entropy, region, len(truth)),
            (moved, region[positive], len(truth)),
            (bce, image[either], len(bce)),
            (shift, image[drawn[0]], len(bce)),
        )
        rows = [
            values.new_zeros(count).index_add(0, where, values) * (count / max(total, 1))
            for values, where, total in parts
        ]
        return dict(zip(LOSSES, rows, strict=True))

    def proposals(self, outputs: BoxOutputs, *, training: bool = False) -> list[Tensor]:
        """Boxes (n, 4) of each image that may hold an object, the likeliest first; without a gradient.

        Args:
            outputs: of N images.
            training: whether as many remain as in training.
        """
        scores, deltas = self._flat_maps(outputs)
        return self._filtered(outputs, scores, deltas, training)

    def region_features(self, outputs: BoxOutputs, boxes: list[Tensor]) -> Tensor:
        """Features (sum of n, d) that the label head has of boxes (n, 4) of each image."""
        head: Any = self.label_head()
        levels = {name: full_precision(level) for name, level in outputs.levels.items()}
        features: Tensor = head.box_head(head.box_roi_pool(levels, boxes, [outputs.canvas] * len(boxes)))
        return features

    @torch.no_grad()
    def detections(self, outputs: BoxOutputs) -> list[dict[str, Tensor]]:
        """``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) from 0 of each image, the highest scores first."""
        head: Any = self.label_head()
        proposals = self.proposals(outputs)
        classes, moves = head.box_predictor(self.region_features(outputs, proposals))
        found = head.postprocess_detections(
            full_precision(classes), full_precision(moves), proposals, _image_sizes(outputs)
        )
        return [
            {"boxes": boxes, "scores": scores, "labels": labels - 1}
            for boxes, scores, labels in zip(*found, strict=True)
        ]

    # ---- steps of torchvision's own forward

    def _for_torchvision(self, outputs: BoxOutputs, targets: Targets) -> list[dict[str, Tensor]]:
        """Labels from 1, boxes in the dtype of the anchors."""
        dtype = outputs.anchors[0].dtype
        if len(targets) != len(outputs):
            raise ValueError(f"{len(targets)} targets were given for the outputs of {len(outputs)} images")
        return [{"boxes": one["boxes"].to(dtype), "labels": one["labels"] + 1} for one in targets]

    def _flat_maps(self, outputs: BoxOutputs) -> tuple[Tensor, Tensor]:
        """Scores (N M, 1) and moves (N M, 4) of the M anchors of each image."""
        maps = {name: [full_precision(one) for one in outputs.maps[name]] for name in ("objectness", "deltas")}
        scores, deltas = concat_box_prediction_layers(maps["objectness"], maps["deltas"])
        return scores, deltas

    def _filtered(self, outputs: BoxOutputs, scores: Tensor, deltas: Tensor, training: bool) -> list[Tensor]:
        count = len(outputs)
        boxes = self.rpn.box_coder.decode(deltas.detach(), [torch.cat(outputs.anchors)] * count)
        per_level = [len(anchors) for anchors in outputs.anchors]
        with _counts_of(self.rpn, training):
            kept, _ = self.rpn.filter_proposals(boxes.view(count, -1, 4), scores, _image_sizes(outputs), per_level)
        return list(kept)

    def _assigned(
        self, outputs: BoxOutputs, targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Scores and moves of the anchors, the label and the right move of each image's anchors, and the proposals."""
        scores, deltas = self._flat_maps(outputs)
        proposals = self._filtered(outputs, scores, deltas, training=True)
        anchors = [torch.cat(outputs.anchors)] * len(outputs)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        return scores, deltas, labels, list(self.rpn.box_coder.encode(matched, anchors)), proposals

    def _anchor_losses(
        self, scores: Tensor, deltas: Tensor, labels: list[Tensor], moves: list[Tensor]
    ) -> tuple[Tensor, Tensor, int]:
        """``compute_loss`` of torchvision's ``RegionProposalNetwork``, and the number of anchors that it draws."""
        positive, negative = (torch.where(torch.cat(drawn))[0] for drawn in self.rpn.fg_bg_sampler(labels))
        either = torch.cat([positive, negative])
        box = F.smooth_l1_loss(deltas[positive], torch.cat(moves)[positive], beta=1 / 9, reduction="sum") / len(either)
        truth = torch.cat(labels).to(scores.dtype)  # torchvision's labels are float32 whatever the scores are
        objectness = F.binary_cross_entropy_with_logits(scores.flatten()[either], truth[either])
        return objectness, box, len(either)

    def _sampled_regions(
        self, outputs: BoxOutputs, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Scores and moves of the proposals that are drawn, and their labels and right moves."""
        head: Any = self.label_head()
        chosen, _, labels, moves = head.select_training_samples(proposals, targets)
        classes, boxes = head.box_predictor(self.region_features(outputs, chosen))
        return full_precision(classes), full_precision(boxes), labels, list(moves)


@contextmanager
def _counts_of(rpn: Any, training: bool) -> Iterator[None]:
    """Within, as many proposals remain as in training, or in test. No layer inside changes its mode."""
    before, rpn.training = rpn.training, training
    try:
        yield
    finally:
        rpn.training = before


def _image_sizes(outputs: BoxOutputs) -> list[tuple[int, int]]:
    """Height and width of each image on the host; they are read from the device if images are padded."""
    if outputs.sizes is None:
        return [outputs.canvas] * len(outputs)
    return [(height, width) for height, width in outputs.sizes.tolist()]


def _image_of(rows: list[Tensor]) -> Tensor:
    """The image that each entry belongs to: N tensors of n_i entries -> (sum of n_i,) int64."""
    return torch.cat([torch.full((len(one),), i, device=one.device) for i, one in enumerate(rows)])
