"""Detectors: one pass that sees no label, from which losses, proposals, regions and detections follow."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork

from dafw.errors import UserError, choose
from dafw.nn.detector_parts import BoxHead, Targets, region_pool
from dafw.nn.layout import BatchLayout
from dafw.nn.two_stage import Proposer, TwoStage
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.ranges import ClosedUnitInterval, PositiveInt

Arch = Literal["fasterrcnn"]
BackboneName = Literal["tiny"]


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

    :meth:`forward` sees images alone. :meth:`losses`, :meth:`proposals`, :meth:`regions` and :meth:`detections` start
    from its outputs, or from a slice of them, and pass no image again. They give the same in training and in evaluation
    mode. Classes count from 0.

    Args:
        arch: ``fasterrcnn``.
        backbone: ``tiny``, a pyramid of two levels with batch norm; the whole detector has 0.2 M parameters then.
        anchor_sizes: sides in pixels of the anchors of each level, whose shapes are 1:2, 1:1 and 2:1.
        anchors_per_image: anchors of an image that the loss of the proposals samples, at most half of them positive.
        regions_per_image: proposals of an image that the loss of the classes samples, at most a quarter positive.
        proposals_in_training: proposals of an image that remain after non-maximum suppression, for the losses.
        proposals_in_test: the same, for detections and for :meth:`proposals`.
        score_threshold: detections of lower scores are left out.
        nms_threshold: overlap above which the lower of two detections of a class is left out.
        detections_per_image: the most that remain of an image.
        in_channels: channels C of an image.
        base: see :class:`~dafw.problems.NetworkBase`.

    Attributes:
        layout: what the network knows about the batch that passes through it.

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
        self.layout = BatchLayout()
        self.strides, self.stride = pyramid.strides, max(pyramid.strides)
        self.anchor_sizes, self.anchors_per_image, self.regions_per_image = sizes, anchors_per_image, regions_per_image
        self.proposals_in_training, self.proposals_in_test = proposals_in_training, proposals_in_test
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.detections_per_image = detections_per_image

    def make_head(self, num_classes: int) -> nn.Module:
        """What follows the pyramid, for so many classes."""
        side, width, names = 5, 96, [str(i) for i in range(len(self.strides))]
        anchors = AnchorGenerator(tuple(map(tuple, self.anchor_sizes)), ((0.5, 1.0, 2.0),) * len(self.anchor_sizes))
        head = RPNHead(self.num_features, anchors.num_anchors_per_location()[0])
        counts = {"training": self.proposals_in_training, "testing": self.proposals_in_test}
        rpn = Proposer(anchors, head, 0.7, 0.3, self.anchors_per_image, 0.5, counts, counts, nms_thresh=0.7)
        heads = RoIHeads(
            region_pool(names, self.strides, side),
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
        return TwoStage(rpn, heads, self.proposals_in_training)

    @property
    def box_head(self) -> BoxHead:
        """The head of this kind of detector.

        Raises:
            RuntimeError: before :meth:`set_classes`.
        """
        head = self.label_head()
        assert isinstance(head, BoxHead)
        return head

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the terms: some of ``class``, ``box``, ``objectness``, ``proposal_box`` and ``centre``."""
        return self.box_head.loss_names

    # ---- the pass

    def forward(self, x: Any, sizes: Tensor | None = None) -> BoxOutputs:
        """Feature maps, the maps that the head makes of them, and the anchors.

        Args:
            x: images (N, C, H, W), padded to one size. Sides that are no multiple of the largest stride are padded.
            sizes: (N, 2) int64, height and width of each image without its padding; ``None``: every image fills ``x``.
        """
        head, images = self.box_head, self.normalise(x, sizes)
        height, width = images.shape[2:]
        canvas = math.ceil(height / self.stride) * self.stride, math.ceil(width / self.stride) * self.stride
        if canvas != (height, width):
            images = F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
            if sizes is None:
                sizes = torch.tensor([[height, width]], device=images.device).expand(images.shape[0], 2)
        levels = self.pass_backbone(images)
        seeds = self.layout.seeds(len(images))
        return BoxOutputs(levels, head.maps(list(levels.values())), head.anchors(levels, canvas), canvas, sizes, seeds)

    # ---- what follows from it

    def losses(self, outputs: BoxOutputs, y: Targets, *, over_ranks: bool = True) -> dict[str, Tensor]:
        """The detector's losses, bit for bit those of torchvision's model in one process.

        Anchors and regions that count are drawn by ``outputs.seeds``, a function of the run's seed, the step and the
        image. Without seeds torch's default generator draws them, as torchvision does. Each loss is a mean over those
        of all ranks. A loss of none is 0.

        Args:
            outputs: of N images.
            y: N times ``boxes`` (n, 4), as x1, y1, x2, y2 in pixels with positive sides, and ``labels`` (n,) int64
                from 0; n may be 0.
            over_ranks: whether the other ranks' images count too. Then every rank must call this.

        Returns:
            Scalars by the names :attr:`loss_names`.
        """
        _check_rows(outputs, y)
        return self.box_head.losses(outputs, y, over_ranks)

    def row_losses(self, outputs: BoxOutputs, y: Targets, *, over_ranks: bool = True) -> dict[str, Tensor]:
        """The losses of each image, (N,) each; their means are :meth:`losses` with the same random numbers.

        Each anchor or region that was drawn has the same weight, so an image with more of them has a larger share.
        """
        _check_rows(outputs, y)
        return self.box_head.row_losses(outputs, y, over_ranks)

    def proposals(self, outputs: BoxOutputs, count: int | None = None) -> list[Tensor]:
        """Boxes (n, 4) of each image that may hold an object, the likeliest first; no label is seen, no gradient kept.

        Args:
            outputs: of N images.
            count: the most that remain of an image; ``proposals_in_test`` if ``None``.
        """
        return self.box_head.proposals(outputs, self.proposals_in_test if count is None else count)

    def regions(self, outputs: BoxOutputs, boxes: Sequence[Tensor]) -> Regions:
        """Features, class scores and moves of any boxes, with the gradient of the outputs.

        Args:
            outputs: of N images.
            boxes: N times (n, 4), as x1, y1, x2, y2 in pixels; n may be 0.
        """
        _check_rows(outputs, boxes)
        return self.box_head.regions(outputs, boxes)

    @torch.no_grad()
    def detections(self, outputs: BoxOutputs) -> list[dict[str, Tensor]]:
        """``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) from 0 of each image, the highest scores first."""
        return self.box_head.detections(outputs, self.proposals_in_test)


def _check_rows(outputs: BoxOutputs, given: Sequence[Any]) -> None:
    if len(given) != len(outputs):
        raise ValueError(f"{len(given)} lists of boxes were given for the outputs of {len(outputs)} images")
