"""DomainBed's DANN and CDANN: two updates by its code, whose turn it is, and what each turn moves."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_vectors import golden
from networks import OneBatch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import ERM, DomainBedCDANN, DomainBedDANN
from dafw.nn.network import Network
from dafw.optim.schedules import Constant
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import toy_trainer

EXACT = {"rtol": 1e-7, "atol": 1e-9}
BOTH = pytest.mark.parametrize("kind", [DomainBedDANN, DomainBedCDANN])
NAMES = {
    "network.backbone.linear": "featurizer_l",
    "network.head": "classifier",
    "critic.0": "discriminator_input",
    "critic.2": "discriminator_hiddens_0",
    "critic.4": "discriminator_output",
}


class Watch(pl.Callback):
    """Keeps weights and terms after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.terms: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if not self.weights:
            self.note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.note(pl_module)

    def note(self, method: DomainBedDANN) -> None:
        self.weights.append({name: value.clone() for name, value in method.state_dict().items()})
        if method.window:
            self.terms.append(dict(method.window[-1].terms))

    def moved(self) -> list[set[str]]:
        """First parts of the names of what each step changed, running statistics left out."""
        pairs = zip(self.weights, self.weights[1:], strict=False)
        changed = [differences(one, other) for one, other in pairs]
        kept = ("running", "num_batches")
        return [{n.partition(".")[0] for n in names if not any(k in n for k in kept)} for names in changed]


@pytest.mark.parametrize(("kind", "file"), [(DomainBedDANN, "dann"), (DomainBedCDANN, "cdann")])
def test_two_updates_of_its_code(kind: type[DomainBedDANN], file: str, tmp_path: Path) -> None:
    given = {k: torch.as_tensor(v) for k, v in golden(f"dann/domainbed_{file}_two_updates.npz").items()}
    (d, inputs), width = given["init_featurizer_l_weight"].shape, given["init_discriminator_input_weight"].shape[0]
    method = kind(
        Network("networks.TanhLinear", backbone_args={"inputs": inputs, "outputs": d}),
        num_classes=len(given["init_classifier_weight"]),
        num_sources=2,
        optimizer="adam",
        lr=0.01,
        schedule=Constant(),
        weight=0.7,
        penalty=0.3,
        width=width,
    ).double()
    names = {f"{ours}.{kind}": f"{theirs}_{kind}" for ours, theirs in NAMES.items() for kind in ("weight", "bias")}
    if isinstance(method, DomainBedCDANN):
        names["embedding.weight"] = "class_embeddings_weight"
    method.load_state_dict({**method.state_dict(), **{o: given[f"init_{t}"] for o, t in names.items()}})
    watch = Watch()
    options: dict[str, Any] = {"precision": "64-true", "limit_val_batches": 0, "log_every_n_steps": 50}
    trainer = toy_trainer(tmp_path, epochs=2, callbacks=[watch], **options)
    trainer.fit(method, datamodule=OneBatch([given["x0"], given["x1"]], [given["y0"], given["y1"]]))
    for step, weights in enumerate(watch.weights[1:], 1):
        for ours, theirs in names.items():
            torch.testing.assert_close(weights[ours], given[f"step{step}_{theirs}"], **EXACT)
    first, second = watch.terms
    torch.testing.assert_close(first["supervised"] + first["domain"], given["gen_loss_step1"], **EXACT)
    torch.testing.assert_close(second["critic"], given["disc_loss_step2"], **EXACT)


@BOTH
@pytest.mark.parametrize("critic_steps", [1, 2])
def test_whose_turn_it_is(kind: type[DomainBedDANN], critic_steps: int, tmp_path: Path) -> None:
    watch = Watch()
    item = case(kind, width=8, critic_steps=critic_steps)
    item.train(tmp_path, callbacks=[watch])
    critic = {"critic"} if kind is DomainBedDANN else {"critic", "embedding"}
    turns = [{"network"}, critic] if critic_steps == 1 else [critic, {"network"}, critic]
    moved = watch.moved()
    assert len(moved) == 8
    assert moved == [turns[step % len(turns)] for step in range(8)]


def test_batch_statistics_count_every_batch(tmp_path: Path) -> None:
    method, _ = case(DomainBedDANN, width=8).train(tmp_path)
    assert int(method.network.backbone.norm.num_batches_tracked) == method.steps_done == 8


@BOTH
def test_the_critic_lowers_what_the_network_raises(kind: type[DomainBedDANN], tmp_path: Path) -> None:
    item = case(kind, width=8, penalty=0.2)
    data = item.make_data()
    method, _ = item.train(tmp_path, data=data, precision="64-true")
    assert isinstance(method, DomainBedDANN)
    batch = next(iter(data.train_dataloader()))
    method.eval()

    def loss() -> Tensor:
        return method.critic_loss(method.forward_rows(batch.x, batch.num_source).features, batch)

    def step(parameters: list[torch.nn.Parameter], value: Tensor) -> float:
        before = loss()
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.sub_(1e-3 * (0 if gradient is None else gradient))
        return float(loss().detach() - before.detach())

    assert step(method.critic_parameters, loss()) < 0
    assert step(list(method.network.parameters()), -method.weight * loss()) > 0


@BOTH
def test_one_source_leaves_the_critic_nothing_to_find(kind: type[DomainBedDANN]) -> None:
    method = case(kind, width=8, penalty=2.0).make(num_sources=1)
    assert isinstance(method, DomainBedDANN)
    batch = rows(torch.tensor([0, 0, 0, 0]))
    features = torch.randn(4, 8, requires_grad=True)
    loss = quiet(method).critic_loss(features, batch)
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, features)[0].any()


def rows(domain: Tensor, labels: Tensor | None = None) -> Batch:
    count = len(domain)
    labels = torch.arange(count) % 3 if labels is None else labels
    return Batch(torch.zeros(count), labels, domain, torch.arange(count), count)


def quiet(method: Any) -> Any:
    """The method with a trainer that logs nothing."""
    method._trainer = toy_trainer(Path(), log_every_n_steps=10)
    method.steps_started = 1
    return method


def test_the_penalty_is_the_mean_squared_slope() -> None:
    method = quiet(case(DomainBedDANN, width=8, penalty=0.7).make()).double()
    batch, features = rows(torch.tensor([0, 0, 1, 1])), torch.randn(4, 8, dtype=torch.float64)
    found = method.critic_loss(features, batch)
    expected = F.cross_entropy(method.critic(features), batch.domain)
    for i in range(4):
        row = features[i : i + 1].clone().requires_grad_()
        own = F.cross_entropy(method.critic(row), batch.domain[i : i + 1])
        expected = expected + 0.7 * torch.autograd.grad(own, row)[0].square().sum() / 4
    torch.testing.assert_close(found, expected)


def test_classes_count_alike_in_cdann() -> None:
    method = case(DomainBedCDANN, width=8).make(num_classes=3)
    assert isinstance(method, DomainBedCDANN)
    each, labels = torch.tensor([4.0, 2.0, 6.0, 1.0]), torch.tensor([0, 1, 1, 2])
    assert float(method.average(each, labels)) == pytest.approx((4 + (2 + 6) / 2 + 1) / 3)
    assert float(method.average(torch.ones(6), torch.tensor([0, 0, 0, 0, 1, 2]))) == pytest.approx(1)


def test_optimizer_of_the_critic(tmp_path: Path) -> None:
    options = {"critic_lr": 3.0, "critic_weight_decay": 0.2, "weight_decay": 0.1}
    method, trainer = case(DomainBedCDANN, width=8, **options).train(
        tmp_path, method=case(DomainBedCDANN, width=8, **options).make(optimizer="adam", lr=0.01, schedule=Constant())
    )
    assert isinstance(method, DomainBedDANN)
    *network, critic = trainer.optimizers[0].param_groups
    assert {id(p) for p in critic["params"]} == {id(p) for p in method.critic_parameters}
    assert (critic["lr"], critic["weight_decay"], critic["betas"]) == (pytest.approx(0.03), 0.2, (0.5, 0.9))
    for group in network:
        assert (group["lr"], group["weight_decay"], group["betas"]) == (pytest.approx(0.01), 0.1, (0.5, 0.9))
    plain = case(DomainBedDANN, width=8).make(optimizer="adam", betas=None)
    assert {group["betas"] for group in plain.configure_optimizers().param_groups} == {(0.9, 0.999)}


@BOTH
def test_the_control_updates_the_network_at_every_batch(kind: type[DomainBedDANN], tmp_path: Path) -> None:
    watch = Watch()
    item = case(kind, width=8)
    control, _ = item.train(tmp_path, method=item.make(**kind.control), callbacks=[watch])
    erm, _ = case(ERM).train(tmp_path)
    assert watch.moved() == [{"network"}] * 8
    assert control.history == erm.history


@pytest.mark.parametrize("arguments", [{"critic_steps": 0}, {"weight": -1.0}, {"penalty": -0.1}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        case(DomainBedDANN).make(**arguments)
