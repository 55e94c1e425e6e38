"""The contract holds for masks too, on images of one size and of several, and for boxes."""

from pathlib import Path
from typing import Any

import pytest

from dafw.methods import (
    CMA,
    DAN,
    DANN,
    ERM,
    NSA,
    OSUDA,
    AdaBN,
    AdaMI,
    AdaptSegNet,
    AdaWAC,
    Advent,
    Dacs,
    DAFasterRCNN,
    DAFormer,
    DeepCORAL,
    FineTune,
    GroupDRO,
    MeanTeacher,
    MinEnt,
    ParetoAdvent,
    SourceOnly,
)
from dafw.nn.detector import Detector
from dafw.nn.segmentation import SegmentationNetwork
from dafw.testing import Case, case, contract
from dafw.testing.cases import DETECTORS
from dafw.testing.dense_toys import ToySegmenter

SIZES = {"sizes": True}
PADDED: dict[str, Any] = {"kind": "segmentation", "data_arguments": SIZES}
LEVELS: dict[str, Any] = {**PADDED, "network": ToySegmenter(auxiliary=True), "levels": 2}
CRITIC: dict[str, Any] = {"critic_width": 4, "critic_layers": 2, "weight": 0.1}
TEACHING = {"threshold": 0.4, "decay": 0.8}
MASKED = {"class_path": "dafw.methods.segmentation.dacs.Masked", "init_args": {"block": 3}}
BOXES: dict[str, Any] = {"threshold": 0.2, "decay": 0.8, "burn_in": 0.25}
HIDDEN = {"class_path": "dafw.methods.detection.box_teacher.Masked", "init_args": {"block": 8}}
CRITIC_OF_PLACES = {"class_path": "dafw.methods.detection.mean_teacher.ImageCritic", "init_args": {"width": 4}}
CRITICS: dict[str, Any] = {"image_width": 8, "instance_width": 8, "critic_dropout": 0.0, "regions": 8}
CASES = {
    "source_masks": case(SourceOnly, kind="segmentation"),
    "source_masks_padded": case(SourceOnly, kind="segmentation", data_arguments=SIZES, norm="separate"),
    "seen_masks_padded": case(SourceOnly, kind="segmentation", data_arguments=SIZES, forward_target=True),
    "adabn_masks": case(AdaBN, kind="segmentation"),
    "adabn_masks_padded": case(AdaBN, kind="segmentation", data_arguments=SIZES),
    "dann_masks": case(DANN, kind="segmentation"),
    "dann_masks_padded": case(
        DANN, kind="segmentation", data_arguments=SIZES, width=8, depth=1, norm="domain_specific", ema_decay=0.8
    ),
    "coral_masks": case(DeepCORAL, kind="segmentation"),
    "coral_masks_padded": case(
        DeepCORAL, kind="segmentation", data_arguments=SIZES, layer="features", moments="mean_and_covariance"
    ),
    "dan_masks": case(DAN, kind="segmentation"),
    "dan_masks_padded": case(DAN, kind="segmentation", data_arguments=SIZES, norm="separate"),
    "dann_tiny_unet": case(
        DANN, kind="segmentation", network=SegmentationNetwork(auxiliary=True), width=8, depth=1, norm="separate"
    ),
    "adabn_tiny_unet": case(AdaBN, kind="segmentation", network=SegmentationNetwork(arch_args={"width": 4})),
    "adaptsegnet_levels": case(AdaptSegNet, **LEVELS, **CRITIC, gan="least_squares", critic_optimizer="momentum"),
    "advent_levels": case(Advent, **LEVELS, **CRITIC, norm="domain_specific", ema_decay=0.8),
    "minent_levels": case(MinEnt, **LEVELS, weight=0.1, norm="joint"),
    "pareto_advent_levels": case(ParetoAdvent, **LEVELS, **CRITIC, guided_above=0.5, mimicking_weight=0.1),
    "dacs_padded": case(Dacs, data_arguments={**SIZES, "target_batch_size": 12}, ignore_top=1, **TEACHING),
    "mic_masks": case(Dacs, masked=MASKED, jitter=1.0, blur=1.0, norm="joint", **TEACHING),
    "mic_padded": case(DAFormer, data_arguments=SIZES, masked=MASKED, distance_weight=0.1, **TEACHING),
    "erm_masks_padded": case(ERM, kind="segmentation", data_arguments=SIZES),
    "adami_padded": case(AdaMI, data_arguments=SIZES, ratio="norm_max", class_weights=[0.2, 1.0, 0.5], ema_decay=0.8),
    "osuda_padded": case(OSUDA, data_arguments=SIZES, decay_steps=3, least_momentum=0.3, trains="norm"),
    "cma_padded": case(CMA, data_arguments=SIZES, width=4, queue_size=50, cells=2, warmup_steps=6, norm="frozen"),
    "adawac_padded": case(AdaWAC, data_arguments=SIZES, ema_decay=0.8),
    "fine_tune_padded": case(FineTune, data_arguments=SIZES, switch=0.6, optimizer="adam"),
    "source_boxes": case(SourceOnly, kind="detection"),
    "seen_boxes": case(SourceOnly, kind="detection", forward_target=True, norm="separate", ema_decay=0.8),
    "adabn_boxes": case(AdaBN, kind="detection"),
    "dann_boxes": case(DANN, kind="detection"),
    "aldi_boxes": case(
        MeanTeacher,
        **BOXES,
        labels="soft",
        pseudo_boxes=True,
        start="average",
        masked=HIDDEN,
        interval=2,
        serve="student",
    ),
    "teacher_fcos": case(MeanTeacher, **BOXES, labels="both", network=Detector(**DETECTORS["fcos"])),
    "adaptive_teacher_boxes": case(
        MeanTeacher, **BOXES, labels="both", source_views="both", critic=CRITIC_OF_PLACES, norm="joint"
    ),
    "da_fcos": case(
        DAFasterRCNN, network=Detector(**DETECTORS["fcos"]), critic_levels="shared", gamma=10.0, reversal=0.5, **CRITICS
    ),
    "nsa_retinanet": case(
        NSA,
        network=Detector(**DETECTORS["retinanet"]),
        **{"threshold": 0.0, "regions": 8, "border": 0, "decay": 0.8, "teacher_interval": 2, "burn_in": 0.25},
        **{"largest": 1.0, "ema_decay": 0.8, "norm": "group"},
    ),
    "group_dro_boxes": case(GroupDRO, kind="detection", rate=0.5),
    **{
        f"{name}_{arch}": case(method, kind="detection", network=Detector(**DETECTORS[arch]), **options)
        for arch in ("fcos", "retinanet")
        for name, method, options in (
            ("source", SourceOnly, {"norm": "group"}),
            ("adabn", AdaBN, {}),
            ("dann", DANN, {"width": 8, "depth": 1, "norm": "domain_specific", "ema_decay": 0.8}),
        )
    },
}
ITEMS = [Case(**{**vars(item), "label": name}) for name, item in CASES.items()]
every_case = pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)


@every_case
def test_label_blind(item: Case, tmp_path: Path) -> None:
    contract.check_label_blind(item, tmp_path)


@every_case
def test_resume(item: Case, resumed: dict[str, Any]) -> None:
    assert resumed[item.name] == {}


@every_case
def test_ranks(item: Case, ranked: dict[str, float]) -> None:
    assert ranked[item.name] <= 1e-9


@every_case
def test_no_stall(item: Case, tmp_path: Path) -> None:
    contract.check_no_stall(item, tmp_path)


@every_case
def test_batch_free_inference(item: Case, tmp_path: Path) -> None:
    contract.check_batch_free_inference(item, tmp_path)


@every_case
def test_round_trip(item: Case, tmp_path: Path) -> None:
    contract.check_round_trip(item, tmp_path)


@every_case
def test_bf16(item: Case, tmp_path: Path) -> None:
    contract.check_bf16(item, tmp_path)


@pytest.mark.parametrize("item", [item for item in ITEMS if item.owner.adversarial], ids=lambda item: item.name)
def test_reversed_gradients(item: Case, tmp_path: Path) -> None:
    contract.check_reversed_gradients(item, tmp_path)


@pytest.mark.parametrize("item", [item for item in ITEMS if item.owner.control], ids=lambda item: item.name)
def test_control(item: Case, tmp_path: Path) -> None:
    contract.check_control(item, tmp_path)
