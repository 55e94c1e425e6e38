"""Checkpoints under Lightning's names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dafw.errors import UserError
from dafw.methods import DANN, SourceOnly
from dafw.testing.toys import ToyData, toy_network, toy_trainer


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **{"batch_size": 8, "steps_per_epoch": 2} | options)


def test_lightnings_name_loads_a_method(trained: Path) -> None:
    method, same = DANN.load_from_checkpoint(trained, map_location="cpu", weights_only=True), DANN.load(str(trained))
    x = torch.stack(list(data().domain("b", "test").inputs))
    assert torch.equal(method(x).logits, same(x).logits)
    assert method.hparams == {
        "network": {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}},
        "num_classes": 3,
        "width": 8,
    }
    assert DANN.load_from_checkpoint(trained, gamma=2.0).hparams.gamma == 2.0


@pytest.mark.parametrize(
    ("owner", "arguments", "said"),
    [
        (SourceOnly, {}, "holds a DANN, not a SourceOnly"),
        (DANN, {"strict": False}, "strict=False is not taken"),
        (DANN, {"weights_only": False}, "weights_only=False is not taken"),
        (DANN, {"hparams_file": "x.yaml"}, "leave out hparams_file"),
        (DANN, {"map_location": {"cuda:1": "cuda:0"}}, "map_location must be a device"),
    ],
)
def test_what_lightnings_name_does_not_take(trained: Path, owner: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        owner.load_from_checkpoint(trained, **arguments)


def test_hparams_leave_out_what_no_checkpoint_can_hold() -> None:
    assert list(DANN(toy_network(), num_classes=3, schedule=lambda p: 1.0).hparams) == ["network", "num_classes"]


def test_a_loaded_method_learns_in_training_mode(trained: Path, tmp_path: Path) -> None:
    method = DANN.load_from_checkpoint(trained)
    assert not method.training
    seen: list[bool] = []
    method.network.backbone.norm.register_forward_hook(lambda module, _, __: seen.append(module.training))
    toy_trainer(tmp_path, epochs=1, limit_val_batches=0).fit(method, datamodule=data())
    assert seen == [True, True]
