"""What every method shares: rates, progress, the moving average, the log, checkpoints without a constructor call."""

import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dafw.errors import UserError
from dafw.methods import DANN, AdaptationMethod, Losses, Method, SourceOnly
from dafw.nn.weights import without_weights
from dafw.optim.schedules import Cosine
from dafw.problems import Outputs
from dafw.run.loggers import CsvLog
from dafw.testing.toys import ToyData, toy_network, toy_trainer


class Watch(pl.Callback):
    """Notes rates, progress and terms of each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.progress: list[float] = []
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.progress.append(pl_module.progress)
        if pl_module.window:
            self.terms.append({name: float(value) for name, value in pl_module.window[-1].terms.items()})


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **{"batch_size": 8, "steps_per_epoch": 5} | options)


def train(method: Method, folder: Path, **options: Any) -> pl.Trainer:
    trainer = toy_trainer(folder, **options)
    trainer.fit(method, datamodule=data())
    return trainer


def dann(**options: Any) -> DANN:
    torch.manual_seed(0)
    return DANN(toy_network(backbone_lr=0.1), **{"num_classes": 3, "width": 8, "lr": 0.05} | options)


def test_rates_follow_progress(tmp_path: Path) -> None:
    watch, method = Watch(), dann(schedule=Cosine())
    train(method, tmp_path, callbacks=[watch])
    assert watch.progress == [step / 10 for step in range(10)]
    for step, rates in enumerate(watch.rates):
        factor = Cosine()(step / 10, step)
        assert rates == pytest.approx([0.005 * factor, 0.05 * factor, 0.05 * factor])  # backbone, head, critic


@pytest.mark.parametrize(
    ("options", "planned"),
    [({"epochs": 3}, 15), ({"epochs": 3, "max_steps": 7}, 7), ({"epochs": -1, "max_steps": 4}, 4)],
)
def test_steps_planned(tmp_path: Path, options: dict[str, Any], planned: int) -> None:
    watch, method = Watch(), dann()
    train(method, tmp_path, callbacks=[watch], **options)
    assert len(watch.progress) == method.steps_done == planned
    assert watch.progress == [step / planned for step in range(planned)]


def test_every_parameter_is_trained_once(tmp_path: Path) -> None:
    method = dann(ema_decay=0.9)
    trainer = train(method, tmp_path, epochs=1)
    assert method.weight_average is not None
    averaged = {id(parameter) for parameter in method.weight_average.parameters()}
    trained = [id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(parameter) for parameter in method.parameters()} - averaged


def test_the_moving_average_is_what_is_served(tmp_path: Path) -> None:
    method = dann(ema_decay=0.5)
    averages = [value.clone() for value in method.network.parameters()]

    class Average(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            for average, value in zip(averages, pl_module.network.parameters(), strict=True):
                average.lerp_(value.detach(), 0.5)

    train(method, tmp_path, callbacks=[Average()])
    for average, value in zip(averages, method.eval_network.parameters(), strict=True):
        torch.testing.assert_close(value, average)
    method.eval()
    images = torch.stack([data().load("b", "test").inputs[i] for i in range(4)])
    with torch.no_grad():
        assert torch.equal(method(images).logits, method.eval_network(images).logits)
        assert not torch.equal(method(images).logits, method.network(images).logits)


def test_the_log_holds_means_since_the_last_look(tmp_path: Path) -> None:
    terms: list[dict[str, float]] = []

    class Noted(DANN):
        def losses(self, batch: Any) -> Losses:
            found = super().losses(batch)
            terms.append({name: float(value) for name, value in found.items()})
            return found

    torch.manual_seed(0)
    log = CsvLog(tmp_path / "metrics.csv")
    train(Noted(toy_network(), num_classes=3, width=8), tmp_path, logger=log)
    looked = [row for row in log.rows if row.get("train/loss")]
    assert [row["step"] for row in looked] == ["3", "6", "9", "10"]
    for row, (start, end) in zip(looked, [(0, 3), (3, 6), (6, 9), (9, 10)], strict=True):
        for name in ("supervised", "domain"):
            mean = sum(each[name] for each in terms[start:end]) / (end - start)
            assert float(row[f"train/{name}"]) == pytest.approx(mean)
        total = sum(sum(each.values()) for each in terms[start:end]) / (end - start)
        assert float(row["train/loss"]) == pytest.approx(total)
        if row["step"] != "10":
            assert float(row["diagnostics/gradient_ratio_domain"]) >= 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.0}, r"model\.lr must be a positive number, not 0\.0"),
        ({"lr": float("inf")}, r"model\.lr must be a positive number, not inf"),
        ({"optimizer": "adamm"}, 'unknown optimizer "adamm"'),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(dann(**options), tmp_path)


def test_what_a_method_must_define(tmp_path: Path) -> None:
    class Bare(Method):
        setting = AdaptationMethod.setting

    for base, lacking in ((Method, "setting"), (Bare, "losses"), (AdaptationMethod, "adapt")):
        with pytest.raises(NotImplementedError, match=f"must define {lacking}"):
            train(base(toy_network(), num_classes=3), tmp_path, epochs=1)


class TwoOptimisers(AdaptationMethod):
    """Takes its steps itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        return {}


def test_max_steps_and_several_optimisers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give trainer\.max_epochs instead"):
        train(TwoOptimisers(toy_network(), num_classes=3), tmp_path, max_steps=3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer = train(dann(), tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    return tmp_path / "one.ckpt"


def test_load(saved: Path) -> None:
    method = DANN.load(str(saved), gamma=3.0)
    assert (method.gamma, method.num_classes, method.steps_done, method.training) == (3.0, 3, 5, False)
    assert isinstance(Method.load(str(saved)), DANN)
    with pytest.raises(UserError, match=r"one\.ckpt holds a DANN, not a SourceOnly"):
        SourceOnly.load(str(saved))


def test_load_imports_nothing_that_the_file_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved.parent
    (folder / "unasked_module.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(str(folder))
    content = torch.load(saved, weights_only=True)
    for path, said in {
        "unasked_module.Method": r"import unasked_module first, if you trust it",
        "os.system": r"names os\.system, which is not a part dafw can build",
        "pathlib.Path": r"names pathlib\.Path, which is not a part",
    }.items():
        content["dafw"]["method"]["class_path"] = path
        torch.save(content, saved)
        with pytest.raises(UserError, match=said):
            Method.load(str(saved))
    assert not (folder / "ran").exists()
    assert "unasked_module" not in sys.modules


def test_statistics_that_were_never_estimated_are_not_frozen_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen at mean 0 and variance 1, batch normalisation does nothing, and a network from scratch ends at chance."""
    SourceOnly(toy_network(), num_classes=3, norm="joint")
    with without_weights():  # a checkpoint is about to fill them
        SourceOnly(toy_network(), num_classes=3, norm="frozen")
    pretrained = toy_network()
    pretrained.backbone.norm.running_mean.fill_(0.5)
    SourceOnly(pretrained, num_classes=3, norm="frozen")
    assert capsys.readouterr().err == ""
    SourceOnly(toy_network(), num_classes=3, norm="frozen")
    assert "give it pretrained weights, or set model.norm to joint" in capsys.readouterr().err
