"""The contract holds for masks too, on images of one size and of several, and for boxes."""

from pathlib import Path
from typing import Any

import pytest

from dafw.methods import CMA, DANN, ERM, OSUDA, AdaBN, AdaMI, AdaWAC, FineTune, SourceOnly
from dafw.testing import Case, case, contract

SIZES = {"sizes": True}
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
