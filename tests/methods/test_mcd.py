"""MCD: its three steps against a loop written by hand, and what each of them moves."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import MCD
from dafw.nn.network import Network
from dafw.optim.schedules import Constant
from dafw.testing import case
from dafw.testing.cases import BATCH, differences
from dafw.testing.toys import ToyData


def train(folder: Path, *, epochs: int = 1, **arguments: object) -> tuple[MCD, ToyData]:
    item = case(MCD, **{"weight": 3.0, **arguments})
    data = item.make_data()
    method, _ = item.train(folder, data=data, epochs=epochs, precision="64-true")
    assert isinstance(method, MCD)
    return method.train(), data


def batches(data: ToyData, count: int) -> list[Batch]:
    data.setup("fit")
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(count)]


def softmax_gap(one: Tensor, other: Tensor) -> Tensor:
    return (one.softmax(1) - other.softmax(1)).abs().mean()


def by_hand(network: Network, steps: list[Batch], *, weight: float, balance: float) -> None:
    """Two optimisers, as the authors have; the features' without momentum."""
    assert network.head is not None
    first, second = network.head.get_submodule("first"), network.head.get_submodule("second")
    g = torch.optim.SGD(network.backbone.parameters(), lr=0.05, weight_decay=0.01)
    f = torch.optim.SGD(network.head.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)

    def outputs(batch: Batch) -> tuple[Tensor, Tensor]:
        features = network.backbone(network.normalise(batch.x))
        return first(features), second(features)

    def supervised(one: Tensor, other: Tensor, y: Tensor) -> Tensor:
        spread = sum((p[BATCH:].softmax(1).mean(0) + 1e-6).log().mean() for p in (one, other))
        return F.cross_entropy(one[:BATCH], y) + F.cross_entropy(other[:BATCH], y) - balance * spread

    for batch in steps:
        for optimizers, sign, learn in [((g, f), 0, True), ((f,), -1, True), *[((g,), 1, False)] * 4]:
            g.zero_grad()
            f.zero_grad()
            one, other = outputs(batch)
            loss = sign * weight * softmax_gap(one[BATCH:], other[BATCH:])
            (loss + supervised(one, other, batch.y) if learn else loss).backward()
            for optimizer in optimizers:
                optimizer.step()


@pytest.mark.parametrize("balance", [0.0, 0.2])
def test_against_a_loop_written_by_hand(tmp_path: Path, balance: float) -> None:
    options = {"weight": 3.0, "balance": balance}
    more = {"weight_decay": 0.01, "parts": {"backbone": {"momentum": 0.0}}, "schedule": Constant()}
    expected = case(MCD, **options).make().double()
    method, data = train(tmp_path, **options, **more)
    by_hand(expected.network.train(), batches(case(MCD).make_data(), data.steps_per_epoch), **options)
    found = differences(method.network.state_dict(), expected.network.state_dict())
    assert all(difference < 1e-10 for difference in found.values()), found


def values(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def gap(method: MCD, batch: Batch) -> float:
    with torch.no_grad():
        return float(method.disagree(*method.predict(method.network.extract(batch.x)), batch))


def unchanged(parameters: list[nn.Parameter], before: list[Tensor]) -> bool:
    return all(map(torch.equal, parameters, before))


def test_heads_part_in_b_and_meet_in_c(tmp_path: Path) -> None:
    method, data = train(tmp_path, norm="frozen", weight=30.0, weight_decay=0.1)
    (batch,) = batches(data, 1)
    for group in method.trainer.optimizers[0].param_groups:
        group["lr"] = 1e-4
    features, heads = values(method.features), values(method.heads)
    start = gap(method, batch)
    method.step_b(batch)
    assert gap(method, batch) > start
    assert unchanged(method.features, features), "step B moves the features"
    assert not unchanged(method.heads, heads)
    parted, heads = gap(method, batch), values(method.heads)
    for _ in range(3):  # past the momentum that the features have from before
        method.step_c(batch)
    assert gap(method, batch) < parted
    assert unchanged(method.heads, heads), "step C moves the heads"
    assert not unchanged(method.features, features)


def test_served_is_the_ensemble(tmp_path: Path) -> None:
    method, data = train(tmp_path, ema_decay=0.5)
    (batch,) = batches(data, 1)
    method.eval()
    served = method.weight_average.module if method.weight_average is not None else method.network
    assert isinstance(served, Network)
    assert served.head is not None
    with torch.no_grad():
        outputs = method(batch.x)
        both = [served.head.get_submodule(name)(outputs.features) for name in ("first", "second")]
    torch.testing.assert_close(outputs.logits, sum(both) / 2)


def test_the_wide_heads_train_with_dropout(tmp_path: Path) -> None:
    method, _ = train(tmp_path, head_widths=[6, 5])
    assert sum(isinstance(layer, nn.Dropout) for layer in method.network.modules()) == 4
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="feature_steps"):
        case(MCD, feature_steps=0).make()
    with pytest.raises(UserError, match=r"model\.parts\.backbone\.momentum does not apply to the optimizer adamw"):
        case(MCD, parts={"backbone": {"momentum": 0.0}}, optimizer="adamw").train(tmp_path)
