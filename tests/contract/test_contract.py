"""Every public method keeps the contract."""

from pathlib import Path
from typing import Any

import pytest

from dafw.commands import listing
from dafw.data.batch import Batch
from dafw.methods import ERM, GeneralizationMethod
from dafw.methods.base import Losses
from dafw.testing import Case, case, cases, contract

CASES = cases()
every_method = pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)
controlled = [item for item in CASES if item.owner.control]
generalizing = [item for item in CASES if issubclass(item.owner, GeneralizationMethod)]
adversarial = [item for item in CASES if item.owner.adversarial]


def test_all_methods_are_found() -> None:
    assert {item.name for item in CASES} == set(listing.methods())
    assert adversarial
    assert controlled


@every_method
def test_label_blind(item: Case, tmp_path: Path) -> None:
    contract.check_label_blind(item, tmp_path)


@every_method
def test_resume(item: Case, resumed: dict[str, Any]) -> None:
    assert resumed[item.name] == {}


@every_method
def test_ranks(item: Case, ranked: dict[str, float]) -> None:
    if item.owner.rank_difference_reason:
        assert ranked[item.name] > 1e-9, "it says that ranks differ, but they do not"
    else:
        assert ranked[item.name] <= 1e-9


@pytest.mark.parametrize("item", generalizing, ids=lambda item: item.name)
def test_target_unread(item: Case, tmp_path: Path) -> None:
    contract.check_target_unread(item, tmp_path)


class Reads(ERM):
    """Reads the target at a moment of training."""

    moment, split = "", ""

    def _read(self, moment: str) -> None:
        if moment == self.moment:
            self.datamodule.load("b", self.split)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._read("setup")

    def on_train_start(self) -> None:
        super().on_train_start()
        self._read("start")

    def losses(self, batch: Batch) -> Losses:
        self._read("step")
        return super().losses(batch)


@pytest.mark.parametrize(
    ("moment", "split"), [("setup", "train"), ("setup", "val"), ("step", "val"), ("start", "test"), ("step", "test")]
)
def test_a_target_that_is_read_is_found(
    moment: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reads, "moment", moment)
    monkeypatch.setattr(Reads, "split", split)
    with pytest.raises(PermissionError, match=f"b's {split} split"):
        contract.check_target_unread(case(Reads), tmp_path)


@every_method
def test_no_stall(item: Case, tmp_path: Path) -> None:
    contract.check_no_stall(item, tmp_path)


@every_method
def test_batch_free_inference(item: Case, tmp_path: Path) -> None:
    contract.check_batch_free_inference(item, tmp_path)


@every_method
def test_round_trip(item: Case, tmp_path: Path) -> None:
    contract.check_round_trip(item, tmp_path)


@pytest.mark.parametrize("item", adversarial, ids=lambda item: item.name)
def test_reversed_gradients(item: Case, tmp_path: Path) -> None:
    contract.check_reversed_gradients(item, tmp_path)


@every_method
def test_bf16(item: Case, tmp_path: Path) -> None:
    contract.check_bf16(item, tmp_path)


@every_method
def test_documented(item: Case) -> None:
    contract.check_documented(item)


@pytest.mark.parametrize("item", controlled, ids=lambda item: item.name)
def test_control(item: Case, tmp_path: Path) -> None:
    contract.check_control(item, tmp_path)


def test_every_method_says_what_its_control_is() -> None:
    without = [i.name for i in CASES if not i.owner.control]
    assert sorted(without) == ["AdaBN", "ERM", "Frozen", "Shallow", "SourceOnly"]
