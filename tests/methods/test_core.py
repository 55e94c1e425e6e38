"""Core: alpha-BN at both ends of its weight, and class confusion that falls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vector_stream import Shallow, follow, network

from dafw.losses.confusion import class_confusion
from dafw.methods import Core
from dafw.nn.norm import norm_parameters


def start() -> Any:
    """A network with running statistics and a head that are not those of a new one."""
    random = np.random.default_rng(0)
    weights = {"head.weight": 20 * random.normal(size=(3, 4)), "head.bias": random.normal(size=3)}
    weights |= {"backbone.bn1.running_mean": random.normal(size=4), "backbone.bn1.running_var": random.random(4) + 0.5}
    torch.manual_seed(0)
    return network(Shallow, weights, "64-true")


def images(count: int, rows: int) -> list[Any]:
    return list(np.random.default_rng(1).random((count, rows, 3, 6, 6)))


def test_without_a_weight_the_source_normalises(tmp_path: Path) -> None:
    method, batches = Core(start(), num_classes=3, target_weight=0.0, learns="nothing"), images(2, 5)
    served, _ = follow(method, batches, tmp_path)
    with torch.no_grad():
        expected = [method.start.module.eval()(torch.as_tensor(batch)).logits for batch in batches]
    for found, logits in zip(served, expected, strict=True):
        torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_statistics_are_mixed_with_the_unbiased_variance_of_the_batch(weight: float, tmp_path: Path) -> None:
    method, (batch,) = Core(start(), num_classes=3, target_weight=weight, learns="nothing"), images(1, 5)
    ((served,), _) = follow(method, [batch], tmp_path)
    model = method.start.module
    norm: nn.BatchNorm2d = model.backbone.bn1
    with torch.no_grad():
        x = model.backbone.conv1(torch.as_tensor(batch))
        mean = torch.lerp(norm.running_mean, x.mean((0, 2, 3)), weight)
        variance = torch.lerp(norm.running_var, x.var((0, 2, 3), unbiased=True), weight)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        expected = model.head((x * norm.weight[:, None, None] + norm.bias[:, None, None]).relu().mean((2, 3)))
    torch.testing.assert_close(served, expected, rtol=1e-9, atol=1e-9)


def test_confusion_falls_on_one_batch_by_scale_and_shift_alone(tmp_path: Path) -> None:
    method, (batch,) = Core(start(), num_classes=3, lr=0.05), images(1, 8)
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    served, _ = follow(method, [batch] * 8, tmp_path)
    losses = [class_confusion(logits).item() for logits in served]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.003
    learnt = {id(parameter) for parameter in norm_parameters(method.network)}
    names = {name for name, parameter in method.network.named_parameters() if id(parameter) in learnt}
    after = method.network.state_dict()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == names


def test_a_stream_of_single_images_stays_finite(tmp_path: Path) -> None:
    served, steps = follow(Core(start(), num_classes=3, lr=0.02), images(12, 1), tmp_path)
    assert all(bool(scores.isfinite().all()) for scores in served)
    assert all(bool(value.isfinite().all()) for value in steps.after[-1].values())
