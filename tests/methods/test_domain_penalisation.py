"""DomainPenalisation and GroupDRO on boxes: their weights by hand, and one pass for all sources."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods import ERM, DomainPenalisation, GroupDRO
from dafw.nn.dense_heads import DenseHead
from dafw.nn.detector import Detector
from dafw.nn.two_stage import TwoStage
from dafw.problems import BoxOutputs
from dafw.testing import case
from dafw.testing.cases import STEPS_PER_EPOCH, differences, path_of


class Watched(DomainPenalisation):
    """Notes what each step weighs by, and the losses."""

    seen: list[tuple[Tensor, Tensor, Tensor]]

    def losses(self, batch: Batch) -> Any:
        terms = super().losses(batch)
        with torch.no_grad():
            joint = self.forward_batch(batch)  # which draws what the step draws
            rows = self.problem.row_losses(joint, batch.y)
        type(self).seen.append((self.weights.clone(), rows, terms["supervised"].detach()))
        return terms


@pytest.mark.parametrize("total", ["sources", "one"])
def test_the_weights_are_the_softmax_of_the_epoch_before(total: str, tmp_path: Path) -> None:
    Watched.seen = []
    item = case(Watched, beta=2.0, total=total, norm="frozen")
    item.train(tmp_path, precision="64-true")
    assert len(Watched.seen) == 2 * STEPS_PER_EPOCH
    weights, rows, values = (torch.stack(column) for column in zip(*Watched.seen, strict=True))
    assert bool((weights[:STEPS_PER_EPOCH] == 1).all()), "equal in the first epoch"
    sources = rows.view(len(rows), 2, -1)
    risks = sources[:STEPS_PER_EPOCH].mean((0, 2))
    wanted = (2.0 * risks).softmax(0) * (2 if total == "sources" else 1)
    torch.testing.assert_close(weights[STEPS_PER_EPOCH:], wanted.expand(STEPS_PER_EPOCH, 2).to(weights.dtype))
    assert (weights[-1].argmax(), weights[-1].argmin()) == (risks.argmax(), risks.argmin())
    torch.testing.assert_close(values, (weights[:, :, None] * sources).mean((1, 2)))


def test_equal_losses_weigh_alike() -> None:
    method: Any = case(DomainPenalisation).make()
    torch.testing.assert_close(method.weights_of(torch.tensor([1.5, 1.5])), torch.ones(2))
    steep: Any = case(DomainPenalisation, beta=50.0).make()
    torch.testing.assert_close(steep.weights_of(torch.tensor([1.0, 3.0])), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("owner", [DomainPenalisation, GroupDRO])
def test_without_its_rate_it_is_erm(owner: type[Any], tmp_path: Path) -> None:
    item = case(owner, kind="detection", **owner.control)
    method, _ = item.train(tmp_path)
    problem = {"problem": item.arguments["problem"]}
    plain, _ = replace(item, class_path=path_of(ERM), arguments=problem).train(tmp_path)
    assert not differences(method.network.state_dict(), plain.network.state_dict())


@pytest.mark.parametrize("arch", ["fasterrcnn", "fcos", "retinanet"])
def test_group_dro_weighs_the_detectors_losses_of_each_source(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Detector(arch, proposals_in_test=20)
    item = case(GroupDRO, kind="detection", network=network, rate=0.5, norm="frozen")
    method: Any = item.make()
    data = item.make_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    rows = slice(batch.num_source)  # a method for sources alone is given no others
    batch = replace(batch, x=batch.x[rows], domain=batch.domain[rows], index=batch.index[rows])
    method.layout.clock = (0, 0)  # every pass of a step draws alike
    passes: list[int] = []
    method.network.backbone.register_forward_hook(lambda *_: passes.append(1))
    images: list[int] = []
    owner, name = (TwoStage, "_terms") if arch == "fasterrcnn" else (DenseHead, "compute")
    found = getattr(owner, name)

    def watched(self: Any, outputs: BoxOutputs, *rest: Any) -> Any:
        images.append(len(outputs))
        return found(self, outputs, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, watched)
        terms = method.losses(batch)
    assert len(passes) == 1
    assert sum(images) == len(batch), "anchors and regions of each image are found once"
    half = len(batch) // 2
    outputs = method.forward_batch(batch)
    risks = torch.stack(
        [method.problem.loss(outputs[part], batch.y[part]) for part in (slice(half), slice(half, None))]
    )
    q = (0.5 * risks.detach()).exp()
    q = q / q.sum()
    torch.testing.assert_close(terms["reweighted"], ((q - 0.5) * risks).sum())
    torch.testing.assert_close(terms["supervised"], method.problem.loss(outputs, batch.y))
    weights = list(method.network.parameters())
    own = torch.autograd.grad(terms["supervised"] + terms["reweighted"], weights)
    wanted = torch.autograd.grad(method.problem.loss(outputs, batch.y) + ((q - 0.5) * risks).sum(), weights)
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
