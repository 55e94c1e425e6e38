"""UniOT: its two losses against loops, the queue, the masses, what it rejects, and when each begins."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.common_classes import Detection
from dafw.methods import UniOT
from dafw.nn.prototypes import PrototypeHead
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, TINY
from dafw.testing.toys import toy_network

SMALL = TINY["UniOT"]


def made(**changes: Any) -> UniOT:
    method = case(UniOT, **{**SMALL, **changes}).make()
    assert isinstance(method, UniOT)
    return method.double()


def trained(folder: Path, **changes: Any) -> tuple[UniOT, Batch]:
    """A method after training, and its next batch."""
    item = case(UniOT, **{**SMALL, **changes})
    data = item.make_data()
    method, _ = item.train(folder, data=data, precision="64-true")
    assert isinstance(method, UniOT)
    return method, next(iter(data.train_dataloader()))


def features(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, SMALL["width"], generator=generator, dtype=torch.float64), dim=1)


# ---- private classes


def with_loops(
    method: UniOT, rows: Tensor, ids: list[int], queue: Tensor, queue_ids: list[int], drawn: Tensor
) -> Tensor:
    """The loss of the private classes, row by row, and the balanced transport by turns."""
    pool, pool_ids = [*rows, *queue], [*ids, *queue_ids]
    neighbours = []
    for row, own in zip(rows, ids, strict=True):
        others = [other for other, other_id in zip(pool, pool_ids, strict=True) if other_id != own]
        neighbours.append(max(others, key=lambda other, row=row: float(row.detach() @ other.detach())))
    logits = [method.clusters(torch.stack(part)) for part in (list(rows), neighbours)]
    scores = torch.cat([*logits, method.clusters(drawn)]).detach() * method.temperature
    plan = (scores / 0.05).exp()
    for _ in range(3):
        plan = plan / plan.sum(0) / plan.shape[1]
        plan = plan / plan.sum(1, keepdim=True) / len(plan)
    plan = plan * len(plan)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(rows)):
        q, q_near = plan[i], plan[len(rows) + i]
        log_p, log_p_near = (part[i].log_softmax(0) for part in logits)
        total = total - (q @ log_p) - ((q_near @ log_p) + (q @ log_p_near)) / 2
    return total / (2 * len(rows))


def test_private_loss_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    method, ids, queue_ids = made(), [3, 9, 4, 7], [4, 11, 3, 12, 13, 14]
    rows, queue = features(4, 0).requires_grad_(True), features(6, 1)
    queue[2] = rows[0].detach()  # its own past
    method.queue[:6] = queue
    method.queue_samples[:6, 0], method.queue_samples[:6, 1] = 1, torch.tensor(queue_ids)
    samples = torch.stack([torch.ones(4, dtype=torch.int64), torch.tensor(ids)], 1)
    monkeypatch.setattr(method, "draw", lambda size: torch.arange(size) / size)
    loss = method.private_loss(rows, samples, 6)
    drawn = queue[[0, 1, 2, 3, 4]]
    expected = with_loops(method, rows, ids, queue, queue_ids, drawn)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, [rows, method.clusters.weight])
    for one, other in zip(found, torch.autograd.grad(expected, [rows, method.clusters.weight]), strict=True):
        torch.testing.assert_close(one, other)


def test_the_first_batch_has_neighbours_in_the_batch_alone() -> None:
    method, rows = made(), features(4, 0)
    samples = torch.arange(8).view(4, 2)
    loss = method.private_loss(rows, samples, 0)
    expected = with_loops(method, rows, [0, 1, 2, 3], rows[:0], [], rows[:0])
    torch.testing.assert_close(loss, expected)


# ---- common classes


def designed() -> tuple[UniOT, Tensor]:
    """A method whose queue and batch have rows at two of three prototypes and, half of them, opposed to all."""
    method = made(iterations=500)
    head = method.network.head
    assert isinstance(head, PrototypeHead)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, SMALL["width"]))
    centres = torch.cat([torch.eye(2, SMALL["width"]), -torch.eye(3, SMALL["width"])[:2]]).double()
    rows = F.normalize(centres.repeat(8, 1) + 0.1 * features(32, 3), dim=1)
    method.queue.copy_(rows[:20])
    return method, rows[20:]


def test_what_is_selected_and_what_is_rejected() -> None:
    method, rows = designed()
    torch.manual_seed(0)
    found = method.detect(rows, 20)
    at_prototypes = torch.arange(12) % 4 < 2
    assert torch.equal(found.selected, at_prototypes)
    assert found.labels[at_prototypes].tolist() == [0, 1] * 3
    assert found.received[2] < 1 / 3
    method.potentials.copy_(found.potentials)
    method.offset.copy_(found.offset)
    scores = method.unknown_scores(Outputs(3.0 * rows, torch.zeros(12, 3)))
    assert torch.equal(scores < 0, at_prototypes)
    one_by_one = [method.unknown_scores(Outputs(row[None], torch.zeros(1, 3))) for row in rows]
    torch.testing.assert_close(scores, torch.cat(one_by_one))


@pytest.mark.parametrize("chosen", [[1, 4, 5], []])
def test_the_common_loss(tmp_path: Path, chosen: list[int]) -> None:
    method, batch = trained(tmp_path, common_weight=0.3)
    method.train()
    target = method.forward_rows(batch.x, batch.num_source)[batch.num_source :]
    labels = torch.arange(len(target)) % 3
    selected = torch.isin(torch.arange(len(target)), torch.tensor(chosen))
    seen: list[Tensor] = []

    def detect(rows: Tensor, written: int) -> Detection:
        seen.append(rows)
        return Detection(labels, selected, method.marginal, method.potentials, method.offset)

    method.detect = detect  # type: ignore[method-assign]
    found = method.losses(batch)["common"]
    torch.testing.assert_close(seen[0], F.normalize(target.features.detach(), dim=1))
    expected = 0.3 * F.cross_entropy(target.logits[chosen], labels[chosen]) if chosen else torch.zeros_like(found)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, list(method.network.parameters()))
    assert any(bool(gradient.any()) for gradient in gradients) == bool(chosen)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


# ---- training


def test_when_the_common_loss_starts_and_masses_follow(tmp_path: Path) -> None:
    late, _ = trained(tmp_path, warmup_steps=STEPS_PER_EPOCH * EPOCHS - 1)
    assert torch.equal(late.marginal, made().marginal)
    assert late.offset == 0
    uniform, _ = trained(tmp_path, inertia=1.0)
    torch.testing.assert_close(uniform.marginal, late.marginal)
    assert uniform.offset != 0
    moved, _ = trained(tmp_path)
    assert (moved.marginal - 1 / 3).abs().max() > 1e-3
    torch.testing.assert_close(moved.marginal.sum(), torch.ones_like(moved.marginal[0]))


@pytest.mark.parametrize(
    "changes", [{}, {"sharpness": {"class_path": "dafw.optim.sharpness.SAM", "init_args": {"rho": 0.05}}}]
)
def test_the_queue_holds_the_latest_rows(tmp_path: Path, changes: dict[str, Any]) -> None:
    item = case(UniOT, **{**SMALL, **changes})
    method = item.make()
    assert isinstance(method, UniOT)
    passed: list[Tensor] = []
    data = item.make_data()
    samples: list[Tensor] = []
    whole, first = method.losses, []

    def losses(batch: Batch) -> Any:
        terms = whole(batch)
        first.append(method.repeated_pass)
        if not method.repeated_pass:
            samples.append(torch.stack([batch.domain, batch.index], 1)[batch.num_source :])
            passed.append(dict(method._proposed)["queue"].clone())
        return terms

    method.losses = losses  # type: ignore[method-assign]
    item.train(tmp_path, method=method, data=data)
    assert any(first) == bool(changes)
    everything = torch.cat(samples)
    places = torch.arange(len(everything)) % SMALL["queue_size"]
    expected = torch.full((SMALL["queue_size"], 2), -1)
    for place, sample in zip(places.tolist(), everything, strict=True):
        expected[place] = sample
    assert torch.equal(method.queue_samples, expected)
    assert torch.equal(method.queue, passed[-1])
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(SMALL["queue_size"]))


def test_prototypes_keep_their_length(tmp_path: Path) -> None:
    method, _ = trained(tmp_path)
    assert isinstance(method.network.head, PrototypeHead)
    for head in (method.network.head, method.clusters):
        torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(len(head.weight), dtype=head.weight.dtype))
    before = made()
    assert not torch.equal(method.clusters.weight, before.clusters.weight)


def test_a_moving_average_serves(tmp_path: Path) -> None:
    method, batch = trained(tmp_path, ema_decay=0.5)
    method.eval()
    outputs = method(batch.x)
    assert isinstance(method.eval_network.head, PrototypeHead)
    cosines = method.eval_network.head.cosines(outputs.features)
    assert cosines.abs().max() <= 1 + 1e-9
    assert method.unknown_scores(outputs).shape == (len(batch),)


def test_where_the_projection_goes() -> None:
    network = toy_network(bottleneck=5)
    UniOT(network, num_classes=3, hidden=7, width=4)
    assert isinstance(network.bottleneck, nn.Sequential)
    assert network(torch.zeros(2, 3, 6, 6)).features.shape == (2, 4)
    dropped = toy_network(dropout=0.5)
    UniOT(dropped, num_classes=3, hidden=7, width=4)
    assert any(isinstance(layer, nn.Dropout) for layer in dropped.bottleneck.modules())  # type: ignore[union-attr]
    plain = toy_network()
    UniOT(plain, num_classes=3, hidden=None)
    assert plain.bottleneck is None
    assert plain(torch.zeros(2, 3, 6, 6)).features.shape == (2, 8)


def test_what_is_refused(tmp_path: Path) -> None:
    for options in ({"head_width": 4}, {"head": "weight_norm"}):
        with pytest.raises(UserError, match="prototypes"):
            UniOT(toy_network(**options), num_classes=3)
    with pytest.raises(UserError, match=f"at least a batch, {BATCH}"):
        case(UniOT, **{**SMALL, "queue_size": BATCH - 1}).train(tmp_path)
