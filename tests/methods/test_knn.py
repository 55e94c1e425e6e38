"""KNN, AdaNPC's training: its queue and its votes, and that AdaNPC starts from it."""

from pathlib import Path

import pytest
import torch

from dafw.data.batch import Batch
from dafw.methods import KNN, AdaNPC
from dafw.testing import case
from dafw.testing.cases import TINY
from dafw.testing.toys import ToyData, toy_trainer


def test_the_loss_is_that_of_the_votes_and_the_rows_then_join() -> None:
    method = case(KNN, queue_size=6, neighbours=2, head_weight=0.0).make()
    x, y = torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 2, 0])
    batch = Batch(x, y, torch.tensor([0, 0, 1, 1]), torch.arange(4), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KNN, "progress", 0.5)
        first = method.losses(batch)["vote"]
        torch.testing.assert_close(first, torch.full(first.shape, -torch.tensor(1e-5).log()))  # nobody votes yet
        method.commit(batch)
        assert int(method.queue.present.sum()) == 4
        second = method.losses(batch)["vote"]
    features = torch.nn.functional.normalize(method.network(x).features, dim=1)
    cosines = features @ features.T
    top = cosines.topk(2, dim=1)
    weights = (top.values / 0.55).softmax(1)
    votes = (torch.nn.functional.one_hot(y[top.indices], 3) * weights[..., None]).sum(1) + 1e-5
    torch.testing.assert_close(second, -votes.clamp_max(1)[torch.arange(4), y].log().mean(), rtol=1e-4, atol=1e-5)
    assert second.requires_grad
    method.commit(batch)
    assert int(method.queue.present.sum()) == 6


def test_the_head_stays_without_a_weight(tmp_path: Path) -> None:
    item = case(KNN, **{**TINY["KNN"], "head_weight": 0.0})
    before = item.make().network.head.weight.clone()
    method, _ = item.train(tmp_path)
    assert torch.equal(method.network.head.weight, before)
    assert set(method.recent_terms()) == {"vote", "loss"}


def test_adanpc_starts_from_it(tmp_path: Path) -> None:
    _, trainer = case(KNN).train(tmp_path)
    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    method = case(AdaNPC, checkpoint=str(tmp_path / "step=1.ckpt"), neighbours=5).make()
    data = ToyData(["a", "c"], "b", batch_size=8)
    toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data)
    assert int(method.memory.present.sum()) >= 80
    assert bool(method.served.done.all())
