"""FixMatch: which rows pass, who teaches, and that nothing is taught below the threshold."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.methods import FixMatch
from dafw.testing import case
from dafw.testing.cases import BATCH, differences


def trained(folder: Path, **arguments: object) -> tuple[FixMatch, Batch]:
    """A method after an epoch, and a batch for it, half of whose target rows teach."""
    item = case(FixMatch, **{"norm": "frozen", **arguments})
    data = item.make_data()
    method, _ = item.train(folder, data=data, epochs=1, precision="64-true")
    assert isinstance(method, FixMatch)
    batch = next(iter(data.train_dataloader()))
    method.train()
    with torch.no_grad():
        method.threshold = float(method(batch.x[BATCH:]).logits.softmax(1).amax(1).median())
    return method, batch


def test_one_pass_of_source_weak_and_strong_rows(tmp_path: Path) -> None:
    method, batch = trained(tmp_path)
    seen: list[Tensor] = []
    method.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.losses(batch)
    images = torch.cat([batch.x, batch.views["strong"][BATCH:]])
    assert not torch.equal(batch.x[BATCH:], batch.views["strong"][BATCH:])
    assert len(seen) == 1
    assert torch.equal(seen[0], method.network.normalise(images))


def test_the_loss_and_its_teacher(tmp_path: Path) -> None:
    method, batch = trained(tmp_path, weight=0.7)
    with torch.no_grad():
        weak, strong = method(batch.x[BATCH:]).logits, method(batch.views["strong"][BATCH:]).logits
    sure = weak.softmax(1).amax(1) >= method.threshold
    assert sure.sum() == BATCH // 2 + 1  # torch's median is the lower of the two in the middle
    expected = 0.7 * (F.cross_entropy(strong, weak.argmax(1), reduction="none") * sure).sum() / BATCH
    torch.testing.assert_close(method.losses(batch)["consistency"].detach(), expected)


def test_weak_rows_only_teach(tmp_path: Path) -> None:
    method, batch = trained(tmp_path)
    kept: list[Tensor] = []
    method.network.backbone.register_forward_hook(lambda *passed: kept.append(passed[2]))
    loss = method.losses(batch)["consistency"]
    (gradient,) = torch.autograd.grad(loss, kept[0])
    rows = gradient.abs().sum(1)
    assert (rows[: 2 * BATCH] == 0).all()
    assert (rows[2 * BATCH :] > 0).any()


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_beyond_reach_of_the_threshold_nothing_is_taught(tmp_path: Path, ema_decay: float | None) -> None:
    one, _ = case(FixMatch, threshold=1.0, ema_decay=ema_decay).train(tmp_path)
    other, _ = case(FixMatch, weight=0.0, ema_decay=ema_decay).train(tmp_path)
    assert not differences(one.state_dict(), other.state_dict())
