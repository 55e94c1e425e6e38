"""Meta-DMoE: aggregator and step against vectors, what each part of the training moves, and the step on a stream."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_vectors import golden
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import MetaDMoE, MetaDMoEAdaptation
from dafw.methods.generalization.meta_dmoe import homes
from dafw.nn.aggregator import ExpertAggregator, other_experts
from dafw.nn.network import Network
from dafw.testing import case
from dafw.testing.cases import TINY

NET = "dafw.testing.toys.ToyNet"
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
PLACES = {
    "norm": "transformer__layers__0__0__norm",
    "attention": "transformer__layers__0__0__fn__attend",
    "forward_norm": "transformer__layers__0__1__norm",
    "wide": "transformer__layers__0__1__fn__net__0",
    "narrow": "transformer__layers__0__1__fn__net__3",
    "head_norm": "mlp__0",
    "head": "mlp__1",
}


def vectors(name: str) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value) for key, value in golden(f"meta_dmoe/{name}.npz").items()}


def test_the_aggregator_is_that_of_the_authors() -> None:
    v = vectors("aggregator")
    features = v["expert_feats_BDE"].transpose(1, 2)
    width, classes = features.shape[2], v["logits_all_experts"].shape[1]
    each = zip(features, v["home_expert"], strict=True)
    masked = torch.cat([other_experts(one[None], int(home)) for one, home in each])
    torch.testing.assert_close(masked, v["masked_BED"])
    found = []
    for heads in (one for one in range(1, width + 1) if width % one == 0):  # the vectors do not say how many there are
        made = ExpertAggregator(width, classes, heads=heads).eval()
        for place, theirs in PLACES.items():
            for name, value in made.get_submodule(place).named_parameters():
                value.data = v[f"{theirs}__{name.replace('.', '__')}"]
        found.append(torch.allclose(made(masked), v["aggregated"], **CLOSE))
        if found[-1]:
            torch.testing.assert_close(made.classify(features), v["logits_all_experts"], **CLOSE)
    assert sum(found) == 1
    torch.testing.assert_close(F.mse_loss(v["student_feat"], v["aggregated"]), v["distill_loss"], **CLOSE)


class Rows(nn.Module):
    """A linear layer without a shift: rows (N, c) -> features (N, d)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.num_features = len(weight)
        self.linear = nn.Linear(weight.shape[1], len(weight), bias=False)
        self.linear.weight.data = weight

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.linear(x)
        return features


def test_the_step_and_its_second_order_gradient_are_those_of_the_formula() -> None:
    v = vectors("maml_step_own_formula")
    network = Network(NET)
    network.set_classes(len(v["H"]))
    method = MetaDMoE(network, num_classes=len(v["H"]), num_sources=2, heads=1, inner_lr=float(v["ilr"]))
    head = nn.Linear(v["H"].shape[1], len(v["H"]), bias=False)
    head.weight.data = v["H"]
    method.network.backbone, method.network.head = Rows(v["W"]), head
    x, goal = torch.cat([v["x_sup"], v["x_que"]]), v["teacher"].requires_grad_(True)
    middle, none = len(v["x_sup"]), torch.zeros(len(x), dtype=torch.int64)
    batch = Batch(x, v["y_que"], none, none, len(x))
    weights, distance = method.after_step(batch, slice(0, middle), goal)
    torch.testing.assert_close(distance, v["inner_loss"], **CLOSE)
    torch.testing.assert_close(weights["backbone.linear.weight"], v["W_fast"], **CLOSE)
    loss = F.cross_entropy(method.pass_student(batch, slice(middle, len(x)), weights).logits, v["y_que"])
    torch.testing.assert_close(loss, v["outer_loss"], **CLOSE)
    by = [method.network.backbone.linear.weight, head.weight, goal]
    for found, name in zip(torch.autograd.grad(loss, by), ("grad_W", "grad_H", "grad_teacher"), strict=True):
        torch.testing.assert_close(found, v[name], rtol=1e-3, atol=1e-5)


class Parts(pl.Callback):
    """Notes after each step which parts have moved in it."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Before the step."""
        self.before = {name: one.detach().clone() for name, one in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """After it."""
        parameters = pl_module.named_parameters()
        moved = [name for name, one in parameters if not torch.equal(one.detach(), self.before[name])]
        self.moved.append({name.partition(".")[0] for name in moved})


def test_each_part_of_the_training_moves_its_own(tmp_path: Path) -> None:
    noted = Parts()
    case(MetaDMoE).train(tmp_path, callbacks=[noted])
    first, second, third = {"network", "experts"}, {"aggregator"}, {"network", "aggregator"}
    assert noted.moved == [first] * 3 + [second] * 2 + [third] * 3


def test_the_mean_of_the_experts_is_the_control_of_the_aggregator(tmp_path: Path) -> None:
    noted = Parts()
    method, _ = case(MetaDMoE, **{**TINY["MetaDMoE"], "aggregation": "mean"}).train(tmp_path, callbacks=[noted])
    assert isinstance(method, MetaDMoE)
    assert noted.moved == [{"network", "experts"}] * 3 + [{"network"}] * 5
    features = torch.rand(4, 3, 8)
    assert torch.equal(method.aggregator(features), features.mean(1))


def test_sources_are_shared_among_the_experts() -> None:
    assert homes(3, None) == [0, 1, 2]
    assert homes(5, 2) == [0, 0, 0, 1, 1]
    for count, experts in ((1, None), (3, 1), (3, 4)):
        with pytest.raises(UserError, match="two experts or more"):
            homes(count, experts)


def test_experts_learn_from_their_own_sources_alone(tmp_path: Path) -> None:
    """The loss of each expert is that of the rows of its sources."""
    method = case(MetaDMoE).make()
    assert isinstance(method, MetaDMoE)
    assert method._rows([0], range(12)) == slice(0, 6)  # type: ignore[arg-type]
    assert method._rows([0, 1], range(12)) == slice(0, 12)  # type: ignore[arg-type]


def start(**arguments: Any) -> Any:
    """A Meta-DMoE's checkpoint: the case of the test-time method trains one."""
    return case(MetaDMoEAdaptation, **{**TINY["MetaDMoEAdaptation"], **arguments})


@pytest.fixture(scope="module")
def checkpoint() -> str:
    found: str = start().with_source().arguments["checkpoint"]
    return found


def test_the_student_makes_one_step_after_each_return_to_the_start(checkpoint: str, tmp_path: Path) -> None:
    assert (
        MetaDMoEAdaptation(Network(NET), checkpoint=checkpoint, num_sources=2, heads=2, num_classes=3).reset == "shift"
    )
    noted = Parts()
    method, _ = start(reset=4).train(tmp_path, callbacks=[noted])
    assert noted.moved == [{"network"}, set(), set(), set(), {"network"}, set(), set(), set()]
    used = torch.bincount(method.served.step, weights=method.served.used.double()) > 0
    assert used.nonzero().flatten().tolist() == [0, 4]
    assert int(method.restarts) == 1


def test_the_step_goes_towards_what_all_experts_see(tmp_path: Path) -> None:
    method, _ = start(reset="never").train(tmp_path, precision="64-true", limit_train_batches=1)
    assert isinstance(method, MetaDMoEAdaptation)
    network = method.start.module
    batch = next(iter(method.data.replay()))
    x = batch.x
    with torch.no_grad():
        goal = method.aggregator(torch.stack([expert(x).features for expert in method.experts], 1))
    network.requires_grad_(True)
    features = network(x).features
    names = [name for name, one in network.named_parameters() if not name.startswith("head")]
    loss = F.mse_loss(features, goal)
    gradients = torch.autograd.grad(loss, [network.get_parameter(name) for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        expected = network.get_parameter(name) - 0.5 * gradient
        torch.testing.assert_close(method.network.get_parameter(name), expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"heads": 4}, "model.heads is 4, but 2 in the model of"),
        ({"aggregation": "mean"}, "model.aggregation is mean, but attention"),
        ({"num_sources": 3}, "has 2 experts"),
        ({"learns": "head"}, "another model.learns than head"),
        ({"ema_decay": 0.9}, "leave out model.ema_decay"),
    ],
)
def test_arguments_are_those_of_the_run(checkpoint: str, arguments: dict[str, Any], said: str) -> None:
    given = {"checkpoint": checkpoint, "num_sources": 2, "heads": 2, "num_classes": 3, **arguments}
    with pytest.raises(UserError, match=said):
        MetaDMoEAdaptation(Network(NET), **given)


def test_the_rate_is_that_of_the_training_unless_it_is_given(checkpoint: str) -> None:
    given: dict[str, Any] = {"checkpoint": checkpoint, "num_sources": 2, "heads": 2, "num_classes": 3}
    assert MetaDMoEAdaptation(Network(NET), **given).lr == TINY["MetaDMoE"]["inner_lr"]
    assert MetaDMoEAdaptation(Network(NET), lr=0.1, **given).lr == 0.1


def test_heads_divide_the_features() -> None:
    with pytest.raises(UserError, match="heads is 3, and must divide"):
        MetaDMoE(Network(NET), num_classes=3, num_sources=2, heads=3)
