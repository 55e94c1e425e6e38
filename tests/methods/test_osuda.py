"""OSUDA: where the running statistics go, what transfers, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import OSUDA
from dafw.testing import case
from dafw.testing.dense_toys import ToySegmenter

ITEM = case(OSUDA)


class FirstLayer(pl.Callback):
    """Keeps the batches' own statistics in front of the only batch normalisation."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        network = pl_module.network
        with torch.no_grad():
            x = network.backbone[0](network.normalise(batch.x, batch.sizes))
        valid = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
        if batch.sizes is not None:
            for row, (height, width) in zip(valid, batch.sizes.tolist(), strict=True):
                row[height:], row[:, width:] = False, False
        values = x.movedim(1, -1)[valid]
        self.seen.append((values.mean(0), values.var(0)))


@pytest.mark.parametrize("sizes", [False, True])
def test_the_statistics_follow_the_closed_form(sizes: bool, tmp_path: Path) -> None:
    item = case(OSUDA, data_arguments={"sizes": sizes})
    method: Any = item.make(**OSUDA.control, momentum=0.9, least_momentum=0.5, decay_steps=2)
    (layer,) = method.layers
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    weights = [p.detach().clone() for p in method.network.parameters()]
    seen = FirstLayer()
    item.train(tmp_path, method=method, callbacks=[seen])
    assert len(seen.seen) == 8
    for step, (batch_mean, batch_var) in enumerate(seen.seen):
        kept = max(0.5, 0.9 * math.exp(-step / 2))
        mean = (1 - kept) * batch_mean + kept * mean
        var = (1 - kept) * batch_var + kept * var
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, var, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(weights, method.network.parameters(), strict=True))


def test_a_training_batch_is_normalised_by_the_moved_statistics() -> None:
    method: Any = ITEM.make()
    (layer,) = method.layers
    layer.momentum = 0.25
    x = torch.randn(4, 6, 5, 5)
    method.train()
    y = layer(x)
    layer.eval()
    torch.testing.assert_close(y, layer(x))


def test_transferability_has_mean_one_and_falls_with_the_distance() -> None:
    method: Any = ITEM.make()
    torch.testing.assert_close(method.transferability(), torch.ones(6))
    (layer,) = method.layers
    layer.running_mean[0] += 10
    found = method.transferability()
    assert float(found.mean()) == pytest.approx(1)
    assert int(found.argmin()) == 0


def test_scales_alone(tmp_path: Path) -> None:
    before = {n: p.detach().clone() for n, p in ITEM.make().network.named_parameters()}
    method, _ = ITEM.train(tmp_path, method=ITEM.make(trains="norm"))
    moved = {n for n, p in method.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"backbone.1.weight", "backbone.1.bias"}


class GroupSegmenter(ToySegmenter):
    """The toy with group normalisation."""

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.backbone[1] = nn.GroupNorm(2, 6)  # type: ignore[operator]


def test_a_network_without_batch_normalisation_is_refused() -> None:
    item = case(OSUDA, network=GroupSegmenter())
    with pytest.raises(UserError, match=r"has none: its normalisation layers are backbone.1 \(GroupNorm\)"):
        item.make()
