"""OSBP: its two terms against loops, whom they train and which way, and which rows it rejects."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.data import Batch
from dafw.errors import UserError
from dafw.methods import OSBP
from dafw.nn.open_head import OpenHead
from dafw.problems import Outputs
from dafw.run.loggers import CsvLog
from dafw.testing.toys import ToyData, toy_network, toy_trainer
from datamodules.label_sets import LabelSets


class Watched(OSBP):
    """Keeps the last batch, and the ramp of each step."""

    last: Batch

    def __init__(self, network: Any, **arguments: Any) -> None:
        super().__init__(network, **arguments)
        self.ramps: list[float] = []

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.last = batch
        self.ramps.append(self.ramp)
        return super().losses(batch)


def trained(folder: Path, network: dict[str, Any] | None = None, log: Any = False, **options: Any) -> Watched:
    torch.manual_seed(0)
    method = Watched(toy_network(**(network or {})), **{"num_classes": 3, "lr": 0.05, **options})
    data = ToyData("a", "b", batch_size=8, target_batch_size=6, steps_per_epoch=5)
    toy_trainer(folder, epochs=1, precision="64-true", logger=log).fit(method, datamodule=data)
    method.train()
    return method


def head_of(method: OSBP) -> OpenHead:
    assert isinstance(method.network.head, OpenHead)
    return method.network.head


@pytest.mark.parametrize("boundary", [0.5, 0.3])
def test_losses_against_loops(tmp_path: Path, boundary: float) -> None:
    method = trained(tmp_path, boundary=boundary, weight=0.7)
    batch = method.last
    terms = method.losses(batch)
    scores = head_of(method).open(method.forward_rows(batch.x, 8).features).tolist()
    assert {len(row) for row in scores} == {4}
    supervised = unknown = 0.0
    for row, label in zip(scores[:8], batch.y.tolist(), strict=True):
        supervised -= row[label] - math.log(sum(map(math.exp, row)))
    for row in scores[8:]:
        share = math.exp(row[3]) / sum(map(math.exp, row))
        unknown -= boundary * math.log(share) + (1 - boundary) * math.log(1 - share)
    assert terms["supervised"].item() == pytest.approx(supervised / 8, rel=1e-9)
    assert terms["unknown"].item() == pytest.approx(0.7 * unknown / 6, rel=1e-9)


def test_the_features_gradient_is_reversed_and_scaled_the_heads_is_not(tmp_path: Path) -> None:
    method = trained(tmp_path, gamma=1.0)
    features = torch.randn(10, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    head = head_of(method)

    def gradients(gamma: float | None) -> tuple[Tensor, ...]:
        method.gamma = gamma
        term = method.head_losses(features, labels, 4)["unknown"]
        return torch.autograd.grad(term, [features, *head.parameters()])

    open_logits = head.open(features[4:])
    odds = open_logits[:, -1] - open_logits[:, :-1].logsumexp(1)
    descending = -torch.nn.functional.logsigmoid(odds) / 2 - torch.nn.functional.logsigmoid(-odds) / 2
    plain = torch.autograd.grad(descending.mean(), [features, *head.parameters()])
    reversed_ = gradients(None)
    assert plain[0][4:].abs().max() > 1e-3
    torch.testing.assert_close(reversed_[0], -plain[0])
    assert reversed_[0][:4].abs().max() == 0
    half = gradients(1.0)
    assert 0 < method.ramp < 1
    torch.testing.assert_close(half[0], -method.ramp * plain[0])
    for one, two, three in zip(plain[1:], reversed_[1:], half[1:], strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def test_a_step_of_the_backbone_raises_the_unknown_term_and_one_of_the_head_lowers_it(tmp_path: Path) -> None:
    method = trained(tmp_path)
    before = method.losses(method.last)["unknown"]
    for part, sign in ((method.network.backbone, 1), (head_of(method), -1)):
        parameters = list(part.parameters())
        gradients = torch.autograd.grad(before, parameters, retain_graph=True)
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 1e-4 / length * gradient
            after = method.losses(method.last)["unknown"]
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
        assert sign * (after - before) > 0


def test_a_target_row_at_the_boundary_moves_nothing(tmp_path: Path) -> None:
    method = trained(tmp_path)
    head = head_of(method)
    last = head.head
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-math.log(3)] * 3 + [0.0], dtype=torch.float64))
    features = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    term = method.head_losses(features, torch.tensor([0, 1]), 2)["unknown"]
    for gradient in torch.autograd.grad(term, [features, *head.parameters()]):
        assert gradient.abs().max() < 1e-15


def test_the_ramp(tmp_path: Path) -> None:
    assert trained(tmp_path).ramps == [1.0] * 5
    ramps = trained(tmp_path, gamma=10.0).ramps
    assert ramps == pytest.approx([2 / (1 + math.exp(-10 * step / 5)) - 1 for step in range(5)])


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}])
def test_what_is_rejected_is_what_all_outputs_call_unknown(tmp_path: Path, options: dict[str, Any]) -> None:
    method = trained(tmp_path, boundary=0.7, **options)
    method.eval()
    domain = ToyData("a", "b").load("b", "test")
    images = torch.stack(list(domain.inputs))
    with torch.no_grad():
        served: Any = method.eval_network
        served.head.head.bias[3] += 0.37  # so that some are
        outputs = method(images)
        scores = served.head.open(outputs.features)
        margins = method.unknown_scores(outputs)
    assert outputs.logits.shape == (len(images), 3)
    assert torch.equal(outputs.logits, scores[:, :3])
    assert torch.equal(margins > 0, scores.argmax(1) == 3)
    assert 0 < (margins > 0).sum() < len(images)
    torch.testing.assert_close(margins, scores[:, 3] - scores[:, :3].max(1).values)


def test_the_rule_of_rejection_exactly() -> None:
    head = OpenHead(torch.nn.Identity())
    scores = torch.tensor([[1.0, 2.0, 2.5], [1.0, 2.0, 1.5], [2.0, 0.0, 2.0], [-9.0, -8.0, -3.0]])
    assert head.margin(scores).tolist() == [0.5, -0.5, 0.0, 5.0]
    assert torch.equal(head(scores), scores[:, :2])
    assert torch.equal(head.open(scores), scores)


def test_its_head_is_made_as_the_networks(tmp_path: Path) -> None:
    method = trained(tmp_path, {"head_width": 5})
    hidden = head_of(method).head
    assert isinstance(hidden, torch.nn.Sequential)
    assert [tuple(weight.shape) for weight in hidden.parameters()] == [(5, 8), (5,), (4, 5), (4,)]
    outputs = Outputs(torch.randn(2, 8, dtype=torch.float64), torch.zeros(2, 3))
    assert method.unknown_scores(outputs).shape == (2,)


def test_an_open_task_is_scored_with_what_it_rejects(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = OSBP(toy_network(), num_classes=2, lr=0.05)
    data = ToyData("a", "b", batch_size=8, steps_per_epoch=5, label_sets=LabelSets(2, 0, 1))
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(method, datamodule=data)
    domain = data.domain("b", "test")
    labels = torch.as_tensor(np.asarray(domain.labels))
    method.eval()
    last: Any = head_of(method).head
    with torch.no_grad():
        outputs = method(torch.stack(list(domain.inputs)))
        last.bias[2] -= method.unknown_scores(outputs).median() - 1e-4  # rejects half of them
        said = torch.where(method.unknown_scores(outputs) > 0, 2, outputs.logits.argmax(1))
    right = (said == labels).float()
    assert 0 < (said == 2).sum() < len(said)
    trainer.test(method, datamodule=data, verbose=False)
    scores = trainer.callback_metrics
    assert float(scores["test/b/unknown_accuracy"]) == pytest.approx(float(right[labels == 2].mean()))
    assert float(scores["test/b/common_accuracy"]) == pytest.approx(float(right[labels < 2].mean()))


def test_the_log_has_the_ramp_and_the_share_of_unknown(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    trained(tmp_path, log=log)
    (row,) = [row for row in log.rows if row.get("diagnostics/ramp")]
    assert float(row["diagnostics/ramp"]) == 1
    assert 0 < float(row["diagnostics/target_unknown"]) < 1
    assert float(row["diagnostics/gradient_ratio_unknown"]) > 0


@pytest.mark.parametrize("boundary", [0.0, 1.0, -0.5])
def test_wrong_arguments(boundary: float) -> None:
    with pytest.raises(UserError, match=r"model\.boundary is a probability between 0 and 1"):
        OSBP(toy_network(), num_classes=3, boundary=boundary)
