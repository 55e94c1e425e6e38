"""Methods that are made without the number of classes, which their trainer's data knows."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import dafw
from dafw.errors import UserError
from dafw.methods import DANN, MCD, DomainBedCDANN, DomainBedDANN, Method, SourceOnly
from dafw.methods.waiting import NUMBERS, Waiting
from dafw.nn.distributed import leave_process_group
from dafw.recording import build, describe
from dafw.testing.cases import Case, cases, differences
from dafw.testing.toys import ToyData, toy_network, toy_trainer


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **{"batch_size": 8, "steps_per_epoch": 2} | options)


@pytest.mark.parametrize("item", cases(), ids=lambda item: item.name)
def test_every_method_waits_for_its_data(item: Case, tmp_path: Path) -> None:
    """It then is what it would have been with the numbers, bit for bit."""
    arguments = item.make()._given[1]
    network = describe(arguments.pop("network", None) or item.make()._given[0][0])
    found: list[Method] = []
    for given in (arguments, {name: value for name, value in arguments.items() if name not in NUMBERS}):
        torch.manual_seed(1)
        found.append(item.owner(build(network), **given))
    whole, method = found
    assert not isinstance(whole, Waiting)
    assert isinstance(method, Waiting)
    method.build(item.make_data())
    assert type(method) is item.owner
    assert differences(method.state_dict(), whole.state_dict()) == {}
    assert method.hparams == whole.hparams


@pytest.mark.parametrize("owner", [DANN, MCD, DomainBedDANN, DomainBedCDANN])
def test_a_trainer_brings_the_number_of_classes(owner: Any, tmp_path: Path) -> None:
    found = []
    for numbers in ({"num_classes": 3, "num_sources": 1} if "DomainBed" in owner.__name__ else {"num_classes": 3}, {}):
        torch.manual_seed(1)
        method = owner(toy_network(), lr=0.02, **numbers)
        trainer = toy_trainer(tmp_path, epochs=1)
        trainer.fit(method, datamodule=data())
        found.append(method)
    assert type(method) is owner
    assert differences(*(one.state_dict() for one in found)) == {}
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = owner.load_from_checkpoint(tmp_path / "x.ckpt")
    assert differences(again.state_dict(), method.state_dict()) == {}
    assert again.hparams == method.hparams == found[0].hparams
    torch.manual_seed(1)
    resumed = owner(toy_network(), lr=0.02)
    toy_trainer(tmp_path, epochs=1).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert differences(resumed.state_dict(), method.state_dict()) == {}


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_an_evaluation_brings_it_too(name: str, tmp_path: Path) -> None:
    method = DANN(toy_network())
    getattr(toy_trainer(tmp_path), name)(method, datamodule=data())
    assert (type(method), method.num_classes) == (DANN, 3)


def test_ranks_bring_it_too(tmp_path: Path) -> None:
    """One rank is enough for the wrapper of several, which wants all parameters before it starts."""
    found = []
    for numbers in ({"num_classes": 3}, {}):
        torch.manual_seed(1)
        found.append(DANN(toy_network(), **numbers))
        strategy = pl.strategies.DDPStrategy(process_group_backend="gloo")
        toy_trainer(tmp_path, epochs=1, strategy=strategy, limit_val_batches=0).fit(found[-1], datamodule=data())
        leave_process_group()
    assert differences(*(one.state_dict() for one in found)) == {}


def test_a_class_that_gives_the_number_itself_waits_for_nothing() -> None:
    class Three(SourceOnly):
        def __init__(self, network: Any, **base: Any) -> None:
            super().__init__(network, num_classes=3, **base)

    assert type(Three(toy_network())) is Three
    assert type(dafw.make(Three, toy_network(), data())) is Three


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"wdith": 3}, "unexpected keyword argument 'wdith'"),
        ({"lr": -1.0}, "model.lr must be a positive number"),
        ({"network": None}, "missing 1 required positional argument: 'network'"),
    ],
)
def test_what_is_wrong_is_said_at_once(arguments: dict[str, Any], said: str) -> None:
    given = {"network": toy_network()} | arguments
    with pytest.raises((TypeError, UserError), match=said):
        DANN(**{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize(
    "use",
    [
        lambda method: method.to(torch.float64),
        lambda method: list(method.parameters()),
        lambda method: method.state_dict(),
        lambda method: method.load_state_dict({}),
        lambda method: copy.deepcopy(method),
        lambda method: method(torch.zeros(1, 3, 6, 6)),
        lambda method: method.network,
    ],
)
def test_a_method_that_waits_says_what_it_lacks(use: Any) -> None:
    with pytest.raises(
        (UserError, AttributeError), match=r"DANN was made without num_classes: give it, or make .* dafw\.make\(DANN, "
    ):
        use(DANN(toy_network()))


def test_loaders_bring_no_number(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without num_classes.* or give the trainer a DomainDataModule as datamodule"):
        toy_trainer(tmp_path).fit(DANN(toy_network()), train_dataloaders=[0])


def test_a_training_in_a_copy_of_the_process_is_refused(tmp_path: Path) -> None:
    """Its weights would come back to a method that has none."""
    method, trainer = DANN(toy_network()), toy_trainer(tmp_path)
    trainer.datamodule, method.trainer = data(), trainer  # type: ignore[attr-defined]
    trainer.strategy._start_method = "fork"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"without num_classes.*, since this trainer trains in a copy of the process"):
        method.configure_callbacks()
