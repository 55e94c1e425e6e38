"""UAN: its terms and its weights by hand, what each part learns from, its rejection."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from private_classes import judge, train
from torch import Tensor

from dafw.errors import UserError
from dafw.losses.transferability import transferability
from dafw.methods import UAN
from dafw.problems import Outputs
from dafw.run.loggers import CsvLog
from dafw.testing import case
from dafw.testing.toys import toy_network

SOURCE = 4


class Halfway(UAN):
    """Diagnoses no step, so that it needs no trainer; the ramp is at 0.5."""

    logs_this_step = False
    ramp = 0.5


def make(**arguments: Any) -> Halfway:
    """A small one in double precision."""
    torch.manual_seed(0)
    return Halfway(toy_network(), num_classes=3, **{"width": 6, "depth": 1, "dropout": 0.0, **arguments}).double()


@pytest.fixture
def outputs() -> Outputs:
    generator = torch.Generator().manual_seed(3)
    features, logits = (torch.randn(9, d, generator=generator, dtype=torch.float64) for d in (8, 3))
    return Outputs(features.requires_grad_(True), (3 * logits).requires_grad_(True))


def adapt(method: UAN, outputs: Outputs) -> dict[str, Tensor]:
    return method.adapt(outputs[:SOURCE], outputs[SOURCE:], outputs)


def weights_by_hand(method: UAN, outputs: Outputs) -> list[Tensor]:
    """One row after the other; the source's weights, then the target's."""
    parts: tuple[list[float], list[float]] = ([], [])
    for i, (f, z) in enumerate(zip(outputs.features.detach(), outputs.logits.detach(), strict=True)):
        similar = float(torch.sigmoid(method.similarity(f).detach()))
        p = torch.softmax(z / (10 if i < SOURCE else 1), 0).tolist()
        uncertain = -sum(q * math.log(q) for q in p) / math.log(3)
        if i < SOURCE:
            parts[0].append(uncertain - similar)
        else:
            parts[1].append(similar - uncertain)
    found = []
    for part in parts:
        scaled = [(value - min(part)) / (max(part) - min(part)) for value in part]
        found += [torch.tensor(value / (sum(scaled) / len(scaled)), dtype=torch.float64) for value in scaled]
    return found


def loop(method: UAN, critic: torch.nn.Module, outputs: Outputs, weights: list[Tensor]) -> Tensor:
    """Sum of the two domains' means of the critic's cross-entropy, without a reversal."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (f, weight) in enumerate(zip(outputs.features, weights, strict=True)):
        p = torch.sigmoid(critic(f))[0]
        total = total - weight * (p.log() / SOURCE if i < SOURCE else (1 - p).log() / (len(weights) - SOURCE))
    return total


def test_terms_and_gradients_by_hand(outputs: Outputs) -> None:
    method = make(weight=0.7)
    terms = adapt(method, outputs)
    assert sorted(terms) == ["domain", "similarity"]
    expected = 0.7 * loop(method, method.critic, outputs, weights_by_hand(method, outputs))
    torch.testing.assert_close(terms["domain"], expected)
    ones = [torch.ones((), dtype=torch.float64)] * 9
    torch.testing.assert_close(terms["similarity"], loop(method, method.similarity, outputs, ones))
    critic = list(method.critic.parameters())
    ours = torch.autograd.grad(terms["domain"], [outputs.features, *critic], retain_graph=True)
    theirs = torch.autograd.grad(expected, [outputs.features, *critic])
    torch.testing.assert_close(ours[0], -0.5 * theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:])


def test_what_learns_from_what(outputs: Outputs) -> None:
    """Nothing but its own weights from D'; neither D' nor the label head through the weights."""
    method = make()
    terms = adapt(method, outputs)
    inputs = [outputs.features, outputs.logits, method.critic[0].weight, method.similarity[0].weight]
    reached = {
        name: [g is not None for g in torch.autograd.grad(term, inputs, allow_unused=True, retain_graph=True)]
        for name, term in terms.items()
    }
    assert reached == {"domain": [True, False, True, False], "similarity": [False, False, False, True]}


def test_one_class_is_no_task_and_nan_no_threshold() -> None:
    with pytest.raises(UserError, match="the source has one alone"):
        UAN(toy_network(), num_classes=1)
    with pytest.raises(UserError, match=r"model\.threshold must be a finite number, not nan"):
        make(threshold=float("nan"))


def test_rejected_is_what_weighs_less_than_the_threshold(outputs: Outputs) -> None:
    method = make(threshold=-0.2)
    scores = method.unknown_scores(outputs)
    assert scores.shape == (9,)
    weights = transferability(method.similarity(outputs.features), outputs.logits).detach()
    assert (scores > 0).tolist() == [value < -0.2 for value in weights.tolist()]
    assert 0 < int((scores > 0).sum()) < 9
    torch.testing.assert_close(make(threshold=0.1).unknown_scores(outputs), scores + 0.3)
    assert make(threshold=float(weights[2])).unknown_scores(outputs)[2] == 0  # at the threshold: not rejected


def test_diagnostics(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    case(UAN).train(tmp_path, logger=log)
    row = next(row for row in log.rows if row.get("diagnostics/ramp"))
    for name in ("critic_accuracy", "similarity_accuracy", "transferability"):
        for domain in ("source", "target"):
            low = -1 if name == "transferability" else 0
            assert low <= float(row[f"diagnostics/{name}_{domain}"]) <= 1
    assert 0 <= float(row["diagnostics/ramp"]) < 1


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_training_leaves_few_mistakes(weight: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"width": 32, "depth": 1}
    method = UAN(toy_network("private_classes.TwoLayers"), num_classes=4, lr=0.05, weight=weight, **small)
    before = judge(method)
    train(method, tmp_path)
    known, private = judge(method)
    assert before[0] + before[1] > 0.8
    assert known < 0.1
    assert private < 0.4
