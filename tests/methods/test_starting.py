"""Any method may start from a trained model, and tests may score it a second time with the target's statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TOY, call

from dafw.errors import UserError
from dafw.methods import DANN, ERM, AdaBN, DRMRetraining, Method, SourceOnly
from dafw.run.artifacts import shown_samples
from dafw.run.entry import inspect
from dafw.run.identity import config_hash
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer

TASK: dict[str, Any] = {"batch_size": 8, "steps_per_epoch": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model of the source."""
    folder = tmp_path_factory.mktemp("source")
    method = SourceOnly(toy_network(), num_classes=3)
    trainer = toy_trainer(folder)
    trainer.fit(method, datamodule=ToyData("a", "b", **TASK))
    trainer.save_checkpoint(folder / "step=6.ckpt")
    return folder / "step=6.ckpt"


def weights(method: Method) -> dict[str, torch.Tensor]:
    return method.network.state_dict()


@pytest.mark.parametrize("owner", [SourceOnly, AdaBN, DANN, ERM])
@pytest.mark.parametrize("norm", ["joint", "separate", "domain_specific"])
def test_a_method_starts_with_the_weights_of_a_checkpoint(owner: type[Method], norm: Any, source: Path) -> None:
    if norm == "domain_specific" and owner not in (DANN,):
        return
    held = weights(SourceOnly.load(str(source)))
    own = weights(owner(toy_network(), num_classes=3, checkpoint=str(source), norm=norm))
    shared = {name: value for name, value in own.items() if "source_" not in name}
    assert shared.keys() == held.keys()
    assert all(torch.equal(shared[name], held[name]) for name in held)
    for name in own.keys() - shared.keys():  # the source's branch starts as the target's
        assert torch.equal(own[name], held[name.replace("source_", "")])


def test_group_norm_is_that_of_both_models_or_of_neither(source: Path, tmp_path: Path) -> None:
    message = r"does not fit model\.norm: give group to both models, or to neither"
    with pytest.raises(UserError, match=message):
        DANN(toy_network(), num_classes=3, checkpoint=str(source), norm="group", width=8)
    grouped = SourceOnly(toy_network(), num_classes=3, norm="group")
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(grouped, datamodule=ToyData("a", "b", **TASK))
    trainer.save_checkpoint(tmp_path / "grouped.ckpt")
    own = weights(DANN(toy_network(), num_classes=3, checkpoint=str(tmp_path / "grouped.ckpt"), norm="group", width=8))
    assert own.keys() == weights(grouped).keys()
    assert all(torch.equal(value, weights(grouped)[name]) for name, value in own.items())
    with pytest.raises(UserError, match=message):
        DANN(toy_network(), num_classes=3, checkpoint=str(tmp_path / "grouped.ckpt"), width=8)


def test_it_goes_on_and_loads_without_the_checkpoint_that_it_started_from(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source.ckpt"
    copy.write_bytes(source.read_bytes())
    method, data = DANN(toy_network(), num_classes=3, checkpoint=str(copy), width=8), ToyData("a", "b", **TASK)
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(method, datamodule=data)
    trainer.save_checkpoint(tmp_path / "step=3.ckpt")
    copy.unlink()
    again = DANN.load(str(tmp_path / "step=3.ckpt"))
    assert all(torch.equal(one, weights(method)[name]) for name, one in weights(again).items())
    missing = DANN(toy_network(), num_classes=3, checkpoint=str(copy), width=8)
    with pytest.raises(UserError, match=r"there is no checkpoint .*source\.ckpt \(model\.checkpoint\)"):
        toy_trainer(tmp_path).fit(missing, datamodule=data)
    onwards = DANN(toy_network(), num_classes=3, checkpoint=str(copy), width=8)
    toy_trainer(tmp_path).fit(onwards, datamodule=data, ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert onwards.steps_done == 6


def test_a_model_that_target_labels_trained_marks_what_starts_from_it(tmp_path: Path) -> None:
    _, trainer = case(SourceOnly, data_arguments={"oracle": True}).train(tmp_path)
    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    started = SourceOnly(toy_network(), num_classes=3, checkpoint=str(tmp_path / "step=1.ckpt"))
    assert started.trained_on == ("b",)
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(started, datamodule=ToyData("a", "b", **TASK))
    trainer.save_checkpoint(tmp_path / "step=2.ckpt")
    assert set(SourceOnly.load(str(tmp_path / "step=2.ckpt")).trained_on) == {"a", "b"}


def test_the_command_takes_the_network_of_the_checkpoint(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--run.plots", "false")
    data = TOY[: TOY.index("--model.network.backbone")]
    first = call(capsys, "fit", "--model", "SourceOnly", *TOY, *toy, "--run.dir", "first")
    assert first.code == 0, first.err
    second = call(capsys, "fit", "--model", "AdaBN", "--model.checkpoint", "first", *data, *toy, "--run.dir", "second")
    assert second.code == 0, second.err
    assert "ToyNet" in (tmp_path / "second" / "config.yaml").read_text()


def test_pictures_show_the_model_that_a_run_started_from(tmp_path: Path) -> None:
    item = case(SourceOnly, kind="segmentation")
    first, trainer = item.train(tmp_path)
    data = item.make_data()
    checkpoint = tmp_path / "start" / "step=8.ckpt"
    trainer.save_checkpoint(checkpoint)
    assert shown_samples(first, data, tmp_path)[0].earlier is None
    started = item.make(checkpoint=str(checkpoint))
    _, trainer = item.train(tmp_path, method=started, data=data)
    with torch.no_grad():
        started.network.head["main"].bias += torch.tensor([0.0, 9.0, 0.0])  # type: ignore[index,union-attr]
    one = shown_samples(started, data, tmp_path)[-1]
    assert one.earlier is not None
    assert one.earlier_name == "start model"
    rows = data.evaluation_loader(data.domain("b", "test"), shard=False)
    plain = first.problem.predictions(first.eval().evaluate(next(iter(rows)), False))["prediction"]
    assert torch.equal(one.earlier["prediction"], plain[:: 1 + (len(plain) - 1) // 3][: len(one.earlier["prediction"])])
    assert not torch.equal(one.earlier["prediction"], one.predictions["prediction"])
    for step in (3, 8):
        trainer.save_checkpoint(tmp_path / "checkpoints" / f"step={step}.ckpt")
    assert shown_samples(first, data, tmp_path)[0].earlier_name == "step 8"
    checkpoint.unlink()
    assert shown_samples(started, data, tmp_path)[0].earlier is None


# ---- the second number


def scores(method: Method, folder: Path, data: ToyData) -> dict[str, dict[str, float]]:
    toy_trainer(folder).test(method, datamodule=data, verbose=False)
    return method.evaluator.test


def test_the_second_number_is_what_adabn_gives_of_the_same_weights(source: Path, tmp_path: Path) -> None:
    data = ToyData("a", "b", **TASK)
    adabn_twice = AdaBN(toy_network(), num_classes=3, checkpoint=str(source), target_statistics=True)
    both = SourceOnly(toy_network(), num_classes=3, checkpoint=str(source), target_statistics=True)
    before = {name: value.clone() for name, value in weights(both).items()}
    found = scores(both, tmp_path, data)
    plain = scores(SourceOnly(toy_network(), num_classes=3, checkpoint=str(source)), tmp_path, data)
    adabn = scores(AdaBN(toy_network(), num_classes=3, checkpoint=str(source)), tmp_path, data)
    second = {name: value for name, value in found["b"].items() if name.endswith("_target_statistics")}
    assert {name.removesuffix("_target_statistics"): value for name, value in second.items()} == adabn["b"]
    assert {name: value for name, value in found["b"].items() if name not in second} == plain["b"]
    assert found["a"] == plain["a"]
    twice = scores(adabn_twice, tmp_path, data)["b"]
    assert all(twice[f"{name}_target_statistics"] == value == twice[name] for name, value in adabn["b"].items())
    assert all(torch.equal(value, before[name]) for name, value in weights(both).items())


def test_masks_and_every_setting_have_a_second_number(tmp_path: Path) -> None:
    from dafw.methods import OSUDA, AdaWAC, Dacs

    for owner in (Dacs, OSUDA, AdaWAC):
        item = case(owner)
        method = item.make(target_statistics=True)
        _, trainer = item.train(tmp_path, method=method, epochs=1, limit_val_batches=0)
        trainer.test(method, datamodule=item.make_data(), verbose=False)
        assert {"miou", "miou_target_statistics"} <= method.evaluator.test["b"].keys(), owner


def test_who_cannot_have_a_second_number_is_told(source: Path) -> None:
    with pytest.raises(UserError, match=r"model\.target_statistics needs a network with batch normalisation"):
        SourceOnly(toy_network(backbone="mnist_net"), num_classes=3, target_statistics=True)
    with pytest.raises(UserError, match=r"DRMRetraining scores what it served: leave out model\.target_statistics"):
        case(DRMRetraining).make(target_statistics=True)


def test_the_names_of_the_second_numbers_are_known_before_the_run_and_the_hash_stays() -> None:
    data = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"source": "a", "target": "b"}}
    network = {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}}

    def config(**arguments: Any) -> dict[str, Any]:
        return {"data": data, "model": {"class_path": "SourceOnly", "init_args": {"network": network, **arguments}}}

    names = inspect(config(target_statistics=True)).metrics
    assert {"accuracy", "accuracy_target_statistics"} <= set(names)
    assert "accuracy_target_statistics" not in inspect(config()).metrics
    assert config_hash(config()) == config_hash(config(target_statistics=False, checkpoint=None))
    assert config_hash(config()) != config_hash(config(target_statistics=True))


def test_a_network_that_arrives_in_evaluation_mode_is_trained_as_the_norm_says(tmp_path: Path) -> None:
    """One that somebody has evaluated before trains the same weights and statistics as a new one."""
    ends = []
    for evaluated in (False, True):
        torch.manual_seed(5)
        network = toy_network()
        method = SourceOnly(network.eval() if evaluated else network, num_classes=3)
        assert all(part.training for part in network.modules())
        toy_trainer(tmp_path, epochs=1).fit(method, ToyData("a", "b", **TASK))
        ends.append(weights(method))
    assert ends[0]["backbone.norm.num_batches_tracked"] == 3
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    frozen = SourceOnly(toy_network(frozen=True).eval(), num_classes=3)
    assert (frozen.network.training, frozen.network.backbone.training) == (True, False)
