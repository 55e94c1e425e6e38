"""What follows the pyramid of a detector, by the name of its architecture."""

from typing import Any, NamedTuple

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead

from dafw.errors import UserError
from dafw.nn.dense_heads import Fcos, Retina, make_fcos, make_retina
from dafw.nn.detector_parts import BoxHead, Proposer, region_pool
from dafw.nn.pyramids import Pyramid
from dafw.nn.torchvision_detectors import TORCHVISION, load_head, make_model
from dafw.nn.two_stage import TwoStage

SHAPES = (0.5, 1.0, 2.0)
"""Height over width of anchors."""


class HeadOptions(NamedTuple):
    """The arguments of a :class:`~dafw.nn.detector.Detector` that concern its head, under their names there."""

    arch: str
    backbone: str
    weights: str | None
    head_width: int | None
    anchor_sizes: list[list[int]] | None
    anchors_per_image: int
    regions_per_image: int
    proposals_in_training: int
    proposals_in_test: int
    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    region_focal: float | None


def make_box_head(options: HeadOptions, levels: Pyramid, channels: int, num_classes: int) -> BoxHead:
    """A new head.

    Args:
        options: of the detector.
        levels: the pyramid, whose module is not needed.
        channels: d of its maps.
        num_classes: classes without the background.
    """
    scores = num_classes + (options.arch == "fasterrcnn")
    model = make_model(options.backbone, scores) if options.backbone in TORCHVISION else None
    if options.arch == "fasterrcnn":
        return _two_stage(options, levels, channels, num_classes, model)
    pool = region_pool(levels.names[: levels.pooled], levels.strides[: levels.pooled], 1, samples=4)
    shared: dict[str, Any] = {
        "score_thresh": options.score_threshold,
        "nms_thresh": options.nms_threshold,
        "detections_per_img": options.detections_per_image,
        "topk_candidates": options.proposals_in_test,
    }
    anchors = _anchors(options, levels) if model is None or options.anchor_sizes else model.anchor_generator
    if options.arch == "fcos":
        if channels % 32:
            raise UserError(f"fcos needs maps with a multiple of 32 channels, not {channels}: set pyramid_width")
        head: BoxHead = Fcos(make_fcos(channels, num_classes, anchors, **shared), pool)
    else:
        given = None if model is None else model.head
        head = Retina(make_retina(channels, num_classes, anchors, given, **shared), pool)
    load_head(head, options.backbone, options.weights if model is not None else None, {"head.": "model.head."})
    return head


def _two_stage(options: HeadOptions, levels: Pyramid, channels: int, num_classes: int, model: Any) -> TwoStage:
    tiny = options.backbone == "tiny"
    anchors = _anchors(options, levels) if model is None or options.anchor_sizes else model.rpn.anchor_generator
    side = 5 if tiny else 7
    if model is None:
        width = options.head_width or (96 if tiny else 1024)
        rpn_head: nn.Module = RPNHead(channels, anchors.num_anchors_per_location()[0])
        box_head: nn.Module = TwoMLPHead(channels * side**2, width)
        predictor: nn.Module = FastRCNNPredictor(width, num_classes + 1)
    else:
        rpn_head, box_head, predictor = model.rpn.head, model.roi_heads.box_head, model.roi_heads.box_predictor
    counts = {"training": options.proposals_in_training, "testing": options.proposals_in_test}
    rpn = Proposer(anchors, rpn_head, 0.7, 0.3, options.anchors_per_image, 0.5, counts, counts, nms_thresh=0.7)
    roi_heads = RoIHeads(
        region_pool(levels.names[: levels.pooled], levels.strides[: levels.pooled], side),
        box_head,
        predictor,
        0.5,
        0.5,
        options.regions_per_image,
        0.25,
        None,
        options.score_threshold,
        options.nms_threshold,
        options.detections_per_image,
    )
    head = TwoStage(rpn, roi_heads, options.proposals_in_training, options.region_focal or 0.0)
    prefixes = {"rpn.": "rpn.", "roi_heads.": "roi_heads."}
    load_head(head, options.backbone, options.weights if model is not None else None, prefixes)
    return head


def _anchors(options: HeadOptions, levels: Pyramid) -> AnchorGenerator:
    """The anchors of all levels."""
    tiny = options.backbone == "tiny"
    if options.arch == "fcos":
        return AnchorGenerator(tuple((stride,) for stride in levels.strides), ((1.0,),) * len(levels.strides))
    if options.anchor_sizes is not None:
        sizes = tuple(map(tuple, options.anchor_sizes))
    elif options.arch == "retinanet":
        starts = [(2 if tiny else 4) * stride for stride in levels.strides]
        sizes = tuple((one, int(one * 2 ** (1 / 3)), int(one * 2 ** (2 / 3))) for one in starts)
    else:
        sizes = tuple(((3 if tiny else 8) * stride,) for stride in levels.strides)
    return AnchorGenerator(sizes, (SHAPES,) * len(sizes))
