"""Outputs of all the targets' training samples: each once, in order, by the network as it is, which stays so."""

from pathlib import Path

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods import SourceOnly
from dafw.methods.targets import target_outputs
from dafw.problems import Outputs
from dafw.testing.cases import differences
from dafw.testing.toys import ToyData, toy_network, toy_trainer


class Asks(SourceOnly):
    """Asks for the outputs after its second step, and holds samples out if told to."""

    found: Outputs
    before: dict[str, Tensor]

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        if self.steps_done == 2:
            self.before = {name: value.clone() for name, value in self.state_dict().items()}
            self.found = target_outputs(self)
            assert self.network.training
            assert not differences(self.before, self.state_dict())


class HoldsOut(Asks):
    held_out = 0.25


def asked(folder: Path, owner: type[Asks], data: ToyData) -> Asks:
    torch.manual_seed(0)
    method = owner(toy_network(), num_classes=3, forward_target=True, norm="domain_specific")
    toy_trainer(folder, epochs=1).fit(method, datamodule=data)
    return method


def test_every_sample_once_and_in_order(tmp_path: Path) -> None:
    data = ToyData("a", ["c", "b"], batch_size=4, steps_per_epoch=3, eval_batch_size=7)
    method = asked(tmp_path, Asks, data)
    method.load_state_dict(method.before)
    method.eval()
    images = torch.stack([image for name in ("c", "b") for image in data.load(name, "train").inputs])
    with torch.no_grad():
        expected = method(images)
    assert method.found.logits.shape == (80, 3)
    torch.testing.assert_close(method.found.features, expected.features)
    torch.testing.assert_close(method.found.logits, expected.logits)
    assert not method.found.logits.requires_grad


def test_what_is_held_out_is_not_among_them(tmp_path: Path) -> None:
    data = ToyData("a", "b", batch_size=4, steps_per_epoch=3)
    method = asked(tmp_path, HoldsOut, data)
    assert len(data.train_domains) == 3
    assert len(method.found) == len(data.train_domains[1]) == 30
    oracle = asked(tmp_path, Asks, ToyData("a", "b", batch_size=4, steps_per_epoch=3, oracle=True))
    assert len(oracle.found) == 40


class FrozenAsks(Asks):
    """With a backbone that stays in evaluation mode."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.network.backbone.eval()

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        assert not any(module.training for module in self.network.backbone.modules())


def test_a_frozen_part_stays_in_evaluation_mode(tmp_path: Path) -> None:
    method = asked(tmp_path, FrozenAsks, ToyData("a", "b", batch_size=4, steps_per_epoch=3))
    assert len(method.found) == 40
