"""What every source-free method gets from its base and from the datamodule: a trained network, and targets alone."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dafw.checkpoints import read_checkpoint
from dafw.data import Batch, Domain
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.methods import SHOT, Method, SourceOnly
from dafw.run.artifacts import write_plots
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer

TASK: dict[str, Any] = {"batch_size": 8, "steps_per_epoch": 3}


class NoSource(ToyData):
    """A datamodule on a machine that the source never reached."""

    def load(self, name: str, split: Split) -> Domain:
        if name in self.source:
            raise AssertionError(f"the {split} split of the source {name} was read")
        return super().load(name, split)


class Batches(pl.Callback):
    """Keeps the training batches."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.seen.append(batch)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "SourceOnly-a-b-s0-0123abcd"
    method = SourceOnly(toy_network(), num_classes=3)
    trainer = toy_trainer(folder)
    trainer.fit(method, datamodule=ToyData("a", "b", **TASK))
    for step in (6, 10):
        trainer.save_checkpoint(folder / "checkpoints" / f"step={step}.ckpt")
        with torch.no_grad():
            method.network.backbone.linear.bias += 1  # type: ignore[operator, union-attr]
    return folder


def shot(checkpoint: Path, **arguments: Any) -> SHOT:
    return SHOT(toy_network(), **{"num_classes": 3, "checkpoint": str(checkpoint), **arguments})


def same(one: Method, state: dict[str, torch.Tensor]) -> bool:
    own = one.network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def network_of(path: Path, prefix: str = "network.") -> dict[str, torch.Tensor]:
    state = read_checkpoint(path)["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_no_source_sample_is_ever_read(source: Path, tmp_path: Path) -> None:
    method, data, batches = shot(source), NoSource(["a", "c"], "b", **TASK), Batches()
    trainer = toy_trainer(tmp_path, callbacks=[batches])
    trainer.fit(method, datamodule=data)
    assert [batch.num_source for batch in batches.seen] == [0] * 6
    assert all(len(batch) == 8 and not len(batch.y) and batch.domain.tolist() == [0] * 8 for batch in batches.seen)
    assert [one.role for one in data.evaluations("validate")] == ["target_val", "target_test"]
    assert [set(entry["validators"]) for entry in method.history] == [{"entropy", "im", "snd", "ac"}] * 2
    trainer.test(method, datamodule=data, verbose=False)
    assert {name.split("/")[1] for name in trainer.callback_metrics if name.startswith("test/")} == {"b"}
    (tmp_path / "metrics.csv").write_text("step,val/im\n3,0.1\n6,0.2\n")
    assert {path.stem for path in write_plots(method, data, tmp_path)} == {"curves", "embedding", "confusion"}


def test_classes_of_the_source_are_not_compared(source: Path, tmp_path: Path) -> None:
    class Partial(NoSource):
        def load(self, name: str, split: Split) -> Domain:
            domain = super().load(name, split)
            return domain.subset([i for i in range(len(domain)) if domain.labels[i] != 2])  # type: ignore[index]

    toy_trainer(tmp_path).fit(shot(source), datamodule=Partial("a", "b", **TASK))


def test_it_starts_from_the_newest_checkpoint_of_a_run_or_from_a_file(source: Path) -> None:
    files = [source / "checkpoints" / f"step={step}.ckpt" for step in (6, 10)]
    assert not same(shot(source), network_of(files[0]))
    assert same(shot(source), network_of(files[1]))
    assert same(shot(source / "checkpoints"), network_of(files[1]))
    assert same(shot(files[0]), network_of(files[0]))
    moved = shot(files[0], ema_decay=0.9)
    assert moved.weight_average is not None
    assert same(moved, moved.weight_average.module.state_dict())


def test_it_starts_from_the_weights_that_were_evaluated(tmp_path: Path) -> None:
    _, trainer = case(SourceOnly, ema_decay=0.8).train(tmp_path)
    path = tmp_path / "step=8.ckpt"
    trainer.save_checkpoint(path)
    assert same(shot(path), network_of(path, "weight_average.module."))
    assert not same(shot(path), network_of(path))


def test_going_on_and_loading_need_no_source_model(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source.ckpt"
    copy.write_bytes((source / "checkpoints" / "step=6.ckpt").read_bytes())
    method, data = shot(copy), ToyData("a", "b", **TASK)
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(method, datamodule=data)
    trainer.save_checkpoint(tmp_path / "step=3.ckpt")
    copy.unlink()
    again = SHOT.load(str(tmp_path / "step=3.ckpt"))
    assert same(again, method.network.state_dict())
    assert torch.equal(again.pseudo, method.pseudo)
    onwards = shot(copy)
    toy_trainer(tmp_path).fit(onwards, datamodule=data, ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert onwards.steps_done == 6
    toy_trainer(tmp_path).test(onwards, datamodule=data, verbose=False)
    with pytest.raises(UserError, match=r"there is no checkpoint .*source\.ckpt \(model\.checkpoint\)"):
        toy_trainer(tmp_path).fit(shot(copy), datamodule=data)
    with pytest.raises(UserError, match=r"there is no checkpoint"):
        toy_trainer(tmp_path).test(shot(copy), datamodule=data, verbose=False)


def test_what_does_not_fit_is_said_at_once(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step=10\.ckpt \(model\.checkpoint\) predicts 3 classes, but the data has 4"):
        shot(source, num_classes=4)
    with pytest.raises(UserError, match=r"model\.network\.bottleneck is 4, but None in the model of .*step=10\.ckpt"):
        SHOT(toy_network(bottleneck=4), num_classes=3, checkpoint=str(source))
    with pytest.raises(UserError, match=r"model\.network\.mean is \[0\.1\], but None"):
        SHOT(toy_network(mean=[0.1]), num_classes=3, checkpoint=str(source))
    SHOT(toy_network(backbone_lr=0.1), num_classes=3, checkpoint=str(source))
    with pytest.raises(UserError, match=r"model\.norm is domain_specific"):
        shot(source, norm="domain_specific")
    _, trainer = case(SourceOnly, norm="domain_specific", forward_target=True).train(tmp_path)
    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    with pytest.raises(UserError, match=r"does not fit model\.network: 5 weights, as backbone\.norm\.source_bias"):
        shot(tmp_path / "step=1.ckpt")
    (tmp_path / "x.ckpt").write_text("nothing")
    with pytest.raises(UserError, match="truncated or no checkpoint"):
        shot(tmp_path / "x.ckpt")


def test_there_is_no_oracle_of_it(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.oracle trains on the target's labels"):
        toy_trainer(tmp_path).fit(shot(source), datamodule=ToyData("a", "b", oracle=True, **TASK))
