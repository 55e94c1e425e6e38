"""Methods that are made for some data, and the numbers that a trainer returns."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

import dafw
import dafw.methods
from dafw.errors import UserError
from dafw.methods import DANN, MCD, DomainBedDANN, SourceOnly
from dafw.testing.toys import ToyData, toy_network, toy_trainer


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **{"batch_size": 8, "steps_per_epoch": 2} | options)


def test_a_method_gets_its_numbers_from_the_data() -> None:
    method = dafw.make(DomainBedDANN, toy_network(), ToyData(["a", "c"], "b"), width=8)
    assert (method.num_classes, method.critic[-1].out_features) == (3, 2)
    assert dafw.make(DANN, toy_network(), data(), num_classes=5).num_classes == 5
    assert dafw.make(SourceOnly, toy_network(), data()).num_classes == 3


def test_another_number_of_classes_than_the_data_has_is_refused(tmp_path: Path) -> None:
    method = DANN(toy_network(), num_classes=4)
    with pytest.raises(UserError, match=r"DANN is for 4 classes \(num_classes\), but the data has 3"):
        toy_trainer(tmp_path).fit(method, datamodule=data())


class Notes(Logger):
    """Keeps what it is sent."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Keeps nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))


@pytest.mark.parametrize("owner", [DANN, MCD])
def test_a_trainer_returns_the_numbers_and_its_loggers_get_them_once(owner: Any, tmp_path: Path) -> None:
    """MCD makes three updates a step, and Lightning counts each of them."""
    notes = Notes()
    trainer, method = toy_trainer(tmp_path, epochs=1, logger=notes), dafw.make(owner, toy_network(), data())
    trainer.fit(method, datamodule=data())
    notes.rows.clear()
    tested, *others = trainer.test(method, datamodule=data(), verbose=False)
    expected = {f"test/{name}/{key}": v for name, found in method.evaluator.test.items() for key, v in found.items()}
    assert set(method.evaluator.test) == {"a", "b"}
    assert tested == expected
    assert others == [tested]
    assert notes.rows == [(2, expected)]
    notes.rows.clear()
    validated = trainer.validate(method, datamodule=data(), verbose=False)[0]
    last = method.history[-1]["validators"]
    assert {name: validated[f"val/{name}"] for name in last} == last
    assert validated.keys() >= {"oracle/accuracy", "oracle/test/b/accuracy"}
    assert [step for step, _ in notes.rows] == [2]


def test_a_sanity_check_is_no_validation(tmp_path: Path) -> None:
    """It looks at two batches of each loader, and a criterion must not choose by that."""
    method = dafw.make(DANN, toy_network(), data(eval_batch_size=4))
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(method, datamodule=data(eval_batch_size=4))
    assert [one["step"] for one in method.history] == [2]


def test_a_trainer_without_a_logger_returns_numbers_and_warns_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    method = dafw.make(DANN, toy_network(), data())
    assert "test/b/accuracy" in toy_trainer(tmp_path).test(method, datamodule=data(), verbose=False)[0]
    assert [str(one.message) for one in recwarn if "logger" in str(one.message)] == []
