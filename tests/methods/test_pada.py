"""PADA: its class weights and its losses against loops, when the weights are computed, and what they come to."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data import Batch
from dafw.errors import UserError
from dafw.methods import DANN, PADA
from dafw.methods.adaptation.pada import class_weights
from dafw.problems import Problem
from dafw.testing.cases import differences
from dafw.testing.toys import ToyData, toy_network, toy_trainer
from datamodules.label_sets import LabelSets


def by_loops(logits: Tensor, temperature: float) -> list[float]:
    sums = [0.0] * logits.shape[1]
    for row in logits.tolist():
        powers = [math.exp(value / temperature) for value in row]
        for k, power in enumerate(powers):
            sums[k] += power / sum(powers)
    return [value / max(sums) for value in sums]


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_class_weights_against_loops(temperature: float) -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = class_weights(logits, temperature)
    np.testing.assert_allclose(found.numpy(), by_loops(logits, temperature), rtol=1e-12)
    assert found.max() == 1
    assert (found > 0).all()
    torch.testing.assert_close(class_weights(logits[:, [2, 0, 3, 1]], temperature), found[[2, 0, 3, 1]])


def test_class_weights_of_undecided_and_of_decided_predictions() -> None:
    assert class_weights(torch.full((5, 4), 3.0)).tolist() == [1.0] * 4
    decided = 1e3 * F.one_hot(torch.tensor([0, 0, 0, 2]), 3).bfloat16()
    found = class_weights(decided)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1 / 3]))


class Watched(PADA):
    """Notes the class weights of each step, and all weights before and after the last time these were computed."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def __init__(self, network: Any, **arguments: Any) -> None:
        super().__init__(network, **arguments)
        self.seen: list[Tensor] = []
        self.trained: list[Batch] = []
        self.steps: list[int] = []

    def refresh(self) -> None:
        before = {name: value.clone() for name, value in self.state_dict().items()}
        super().refresh()
        if not torch.equal(before["class_weights"], self.class_weights):
            self.before, self.after = before, {name: value.clone() for name, value in self.state_dict().items()}
            self.steps.append(self.steps_done)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(self.class_weights.clone())
        self.trained.append(batch)
        return super().losses(batch)


def make(owner: type[Any], **options: Any) -> Any:
    torch.manual_seed(0)
    return owner(toy_network(), **{"num_classes": 3, "lr": 0.05, "width": 8, **options})


def trained(folder: Path, owner: type[Any], data: ToyData, epochs: int = 2, **options: Any) -> Any:
    method = make(owner, **options)
    toy_trainer(folder, epochs=epochs).fit(method, datamodule=data)
    return method


def toy() -> ToyData:
    return ToyData("a", "b", batch_size=8, steps_per_epoch=4)


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6]), (8, []), (4, [4]), (1, list(range(1, 8))), (None, [])])
def test_when_class_weights_change(tmp_path: Path, every: int | None, steps: list[int]) -> None:
    seen = trained(tmp_path, Watched, toy(), refresh_every=every).seen
    assert seen[0].tolist() == [1.0] * 3
    assert [i for i in range(1, 8) if not torch.equal(seen[i], seen[i - 1])] == steps
    assert all(weights.max() == 1 for weights in seen)


def test_class_weights_are_those_of_the_network_in_evaluation(tmp_path: Path) -> None:
    data = toy()
    method = trained(tmp_path, Watched, data, refresh_every=3, temperature=0.3)
    assert method.steps == [3, 6]
    earlier = make(PADA)
    earlier.load_state_dict(method.before)
    earlier.eval()
    with torch.no_grad():
        logits = earlier(torch.stack(list(data.load("b", "train").inputs))).logits
    torch.testing.assert_close(method.class_weights, class_weights(logits, 0.3))
    kept = {name: value for name, value in method.after.items() if name != "class_weights"}
    assert not differences(kept, {name: method.before[name] for name in kept})


def test_a_class_that_the_target_lacks_gets_little_weight(tmp_path: Path) -> None:
    data = ToyData("a", "b", batch_size=8, steps_per_epoch=20, label_sets=LabelSets(2, 1))
    method = trained(tmp_path, PADA, data, epochs=3, refresh_every=20)
    assert method.class_weights[2] < 0.3
    assert method.class_weights[:2].min() > 0.6


def loss_by_loops(method: Any, batch: Batch, mode: str) -> tuple[float, float]:
    """The supervised and the domain loss."""
    outputs, n = method.forward_rows(batch.x, batch.num_source), batch.num_source
    weights = [float(method.class_weights[k]) for k in batch.y.tolist()]
    surprise = [-float(row.detach().log_softmax(0)[k]) for row, k in zip(outputs.logits, batch.y, strict=False)]
    supervised = sum(w * s for w, s in zip(weights, surprise, strict=True)) / (n if mode == "paper" else sum(weights))
    shares = torch.sigmoid(method.critic(outputs.features)[:, 0]).tolist()
    source = [w * -math.log(p) for w, p in zip(weights, shares, strict=False)]
    target = [-math.log(1 - p) for p in shares[n:]]
    if mode == "authors":
        source = [one / max(weights) for one in source]
    if mode == "tllib":
        target = [sum(weights) / n * one for one in target]
    return supervised, (sum(source) / n + sum(target) / len(target)) / 2


@pytest.mark.parametrize("mode", ["paper", "authors", "tllib"])
def test_losses_against_loops(tmp_path: Path, mode: str) -> None:
    data = ToyData("a", "b", batch_size=6, target_batch_size=4, steps_per_epoch=4)
    method = make(Watched, refresh_every=100, mode=mode, weight=0.7)
    toy_trainer(tmp_path, epochs=1, precision="64-true").fit(method, datamodule=data)
    method.train()
    method.class_weights.copy_(torch.tensor([0.2, 0.9, 0.05]))
    batch = method.trained[-1]
    terms = method.losses(batch)
    supervised, domain = loss_by_loops(method, batch, mode)
    assert terms["supervised"].item() == pytest.approx(supervised, rel=1e-9)
    assert terms["domain"].item() == pytest.approx(0.7 * domain, rel=1e-9)


@pytest.mark.parametrize("mode", ["paper", "authors", "tllib"])
def test_with_equal_weights_it_is_dann(tmp_path: Path, mode: str) -> None:
    dann = trained(tmp_path, DANN, toy())
    never = trained(tmp_path, PADA, toy(), refresh_every=None, mode=mode)
    assert not differences({**dann.state_dict(), "class_weights": torch.ones(3)}, never.state_dict())
    equal = trained(tmp_path, PADA, toy(), refresh_every=100, mode=mode)
    torch.testing.assert_close(equal.state_dict(), never.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_batch_of_classes_without_weight_stays_finite(tmp_path: Path) -> None:
    for mode in ("paper", "authors", "tllib"):
        method = trained(tmp_path, Watched, toy(), epochs=1, mode=mode)
        method.class_weights.zero_()
        assert all(bool(term.isfinite()) for term in method.losses(method.trained[-1]).values())


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match=r"model\.refresh_every must be at least 1, or null, not 0"):
        make(PADA, refresh_every=0)
    with pytest.raises(UserError, match=r"model\.temperature must be positive, not 0"):
        make(PADA, temperature=0.0)
    with pytest.raises(UserError, match=r"PADA is a method for classification, and model\.problem is Problem"):
        make(PADA, problem=Problem())
