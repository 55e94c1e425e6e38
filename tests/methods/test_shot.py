"""SHOT: its pseudo-labels against loops, when they are refreshed, and what it leaves as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.data import Batch
from dafw.errors import UserError
from dafw.methods import SHOT
from dafw.methods.source_free.shot import pseudo_labels
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    """Features (60, 5) around four places, logits (60, 6); the last class is nobody's."""
    generator = torch.Generator().manual_seed(2)
    places = 2 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    features = places[torch.arange(60) % 4] + torch.randn(60, 5, generator=generator, dtype=torch.float64)
    logits = features @ torch.randn(5, 6, generator=generator, dtype=torch.float64)
    logits[:, 5] -= 100
    return features, logits


def by_loops(features: Tensor, logits: Tensor, threshold: int) -> list[int]:
    units = [np.append(f, 1) / np.sqrt(f @ f + 1) for f in features.numpy()]
    shares = logits.softmax(1).numpy()
    found = shares.argmax(1)
    for _ in range(2):
        kept = [k for k in range(shares.shape[1]) if (found == k).sum() > threshold]
        places = {k: sum(s[k] * u for s, u in zip(shares, units, strict=True)) for k in kept}
        close = [{k: u @ c / np.sqrt(c @ c) for k, c in places.items()} for u in units]
        found = np.array([max(one, key=lambda k: one[k]) for one in close])
        shares = np.eye(shares.shape[1])[found]
    return [int(k) for k in found]


@pytest.mark.parametrize("threshold", [0, 5, 12])
def test_against_loops(samples: tuple[Tensor, Tensor], threshold: int) -> None:
    assert pseudo_labels(*samples, threshold).tolist() == by_loops(*samples, threshold)


def test_a_class_without_enough_samples_is_given_to_none(samples: tuple[Tensor, Tensor]) -> None:
    found = pseudo_labels(*samples)
    assert 5 not in found
    _, counts = pseudo_labels(*samples, 12).unique(return_counts=True)
    assert counts.sum() == 60
    assert torch.equal(pseudo_labels(*samples, 1000), found)  # no class has so many: all that anyone has


def test_the_order_of_samples_does_not_matter(samples: tuple[Tensor, Tensor]) -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    features, logits = samples
    assert torch.equal(pseudo_labels(features[order], logits[order]), pseudo_labels(features, logits)[order])
    assert pseudo_labels(features.bfloat16(), logits.bfloat16()).dtype == torch.int64


class Watched(SHOT):
    """Notes at which steps there were refreshes, and which terms each step had."""

    def __init__(self, network: Any, **arguments: Any) -> None:
        super().__init__(network, **arguments)
        self.refreshed: list[int] = []
        self.terms: list[set[str]] = []
        self.labels: list[Tensor] = []

    def refresh(self) -> None:
        before = self.pseudo
        super().refresh()
        if self.pseudo is not before:
            self.refreshed.append(self.steps_done)

    def adapt(self, target: Any, batch: Batch) -> Any:
        terms = super().adapt(target, batch)
        self.terms.append(set(terms))
        self.labels.append(self.pseudo)
        return terms


def trained(folder: Path, data: ToyData | None = None, **arguments: Any) -> Watched:
    start = case(SHOT).with_source().arguments["checkpoint"]
    method = Watched(toy_network(), **{"num_classes": 3, "lr": 0.05, "checkpoint": start, **arguments})
    data = data or ToyData("a", "b", batch_size=8, steps_per_epoch=4)
    toy_trainer(folder, epochs=2).fit(method, datamodule=data)
    return method


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 3, 6]), (None, [0, 5]), (1, list(range(8))), (8, [0])])
def test_refreshes(tmp_path: Path, every: int | None, steps: list[int]) -> None:
    """40 samples in batches of 8: a pass has 5 steps."""
    method = trained(tmp_path, refresh_every=every)
    assert method.refreshed == steps
    assert method.terms == [{"information", "pseudo"}] * 8
    assert len({id(labels) for labels in method.labels}) == len(steps)
    assert method.pseudo.shape == (40,)


def test_the_term_of_the_pseudo_labels_can_wait_or_be_absent(tmp_path: Path) -> None:
    waiting = trained(tmp_path, refresh_every=3, pseudo_delay=2)
    assert waiting.terms == [{"information"}] * 6 + [{"information", "pseudo"}] * 2
    information = trained(tmp_path, pseudo_weight=0)
    assert information.terms == [{"information"}] * 8
    assert information.refreshed == []


def test_pseudo_labels_are_those_of_the_network_in_evaluation(tmp_path: Path) -> None:
    data = ToyData("a", "b", batch_size=8, steps_per_epoch=4)
    method = trained(tmp_path, data, refresh_every=8)
    source, _ = case(SHOT).make(), method.eval()
    source.eval()
    images = torch.stack(list(data.load("b", "train").inputs))
    with torch.no_grad():
        outputs = source(images)
    assert torch.equal(method.pseudo, pseudo_labels(outputs.features, outputs.logits))


def test_each_row_of_several_targets_gets_its_own_label(tmp_path: Path) -> None:
    method = trained(tmp_path, ToyData("a", ["b", "c"], batch_size=8, steps_per_epoch=4))
    assert method.starts.tolist() == [0, 40]
    method.pseudo = torch.arange(80)
    batch = Batch(None, [], torch.tensor([0, 1, 1]), torch.tensor([7, 0, 9]), 0)
    assert method.labels_of(batch).tolist() == [7, 40, 49]


def test_the_head_stays_and_the_rest_moves(tmp_path: Path) -> None:
    method, source = trained(tmp_path), case(SHOT).make()
    moved = {
        name for name, value in source.network.named_parameters()
        if not torch.equal(value, dict(method.network.named_parameters())[name])
    }  # fmt: skip
    assert moved == {name for name, _ in source.network.named_parameters() if not name.startswith("head.")}


def test_its_control_is_the_source_model_with_the_targets_statistics(tmp_path: Path) -> None:
    method, source = trained(tmp_path, **SHOT.control), case(SHOT).make().network.state_dict()
    moved = {name for name, value in method.network.state_dict().items() if not torch.equal(value, source[name])}
    assert moved == {f"backbone.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match=r"model\.refresh_every must be at least 1, not 0"):
        SHOT(toy_network(), num_classes=3, checkpoint="x", refresh_every=0)
