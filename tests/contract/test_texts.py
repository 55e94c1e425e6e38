"""Methods keep the contract on the tokens of texts, which are padded to a length of each batch on each rank."""

from pathlib import Path
from typing import Any

import pytest
from encoders import make_encoder, write_reviews

from dafw.testing import Case, contract
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, TINY
from datamodules.text import TextDomains

METHODS = {
    "SourceOnly": "adaptation.source_only",
    "DANN": "adaptation.dann",
    "DeepCORAL": "adaptation.deep_coral",
    "Tent": "test_time.tent",
}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """By name a case of a method on texts, with an encoder without dropout."""
    folder = tmp_path_factory.mktemp("texts")
    encoder = make_encoder(folder / "encoder")
    data: dict[str, Any] = {"source": "books", "target": "films", "tokenizer": str(encoder)}
    data |= {"root": str(write_reviews(folder / "data", count=200)), "split": [0.5, 0.1, 0.4]}
    stream = {"images_per_domain": EPOCHS * STEPS_PER_EPOCH * BATCH - 2}
    found = {}
    for name, module in METHODS.items():
        network: dict[str, Any] = {"backbone": f"transformers:{encoder}", "backbone_args": {"pooling": "mean"}}
        if name == "DANN":
            network["bottleneck"] = 8
        served = {**data, **(stream if name == "Tent" else {})}
        path, where = f"dafw.methods.{module}.{name}", f"{TextDomains.__module__}.TextDomains"
        found[name] = Case(path, TINY.get(name, {}), served, network, data_path=where)
    return found


every_method = pytest.mark.parametrize("name", METHODS)


def test_resume(items: dict[str, Case], tmp_path: Path) -> None:
    assert contract.check_resume([*items.values()], tmp_path) == {name: {} for name in METHODS}


def test_ranks(items: dict[str, Case], tmp_path: Path) -> None:
    apart = contract.check_ranks([*items.values()], tmp_path)
    assert max(apart.values()) <= 1e-9, apart


@every_method
def test_label_blind(items: dict[str, Case], name: str, tmp_path: Path) -> None:
    contract.check_label_blind(items[name], tmp_path)


@every_method
def test_no_stall(items: dict[str, Case], name: str, tmp_path: Path) -> None:
    contract.check_no_stall(items[name], tmp_path)


@every_method
def test_batch_free_inference(items: dict[str, Case], name: str, tmp_path: Path) -> None:
    contract.check_batch_free_inference(items[name], tmp_path)


@every_method
def test_round_trip(items: dict[str, Case], name: str, tmp_path: Path) -> None:
    contract.check_round_trip(items[name], tmp_path)


@every_method
def test_bf16(items: dict[str, Case], name: str, tmp_path: Path) -> None:
    contract.check_bf16(items[name], tmp_path)


def test_control(items: dict[str, Case], tmp_path: Path) -> None:
    contract.check_control(items["DANN"], tmp_path)
