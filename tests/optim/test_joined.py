"""Optimisers of two classes as one: their updates, their state, and their options."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dafw.optim.joined import JoinedOptimizers
from dafw.optim.optimizers import make_optimizer, own_momentum


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3), nn.Linear(4, 2)


def joined(body: nn.Module, critic: nn.Module, fused: bool | None) -> torch.optim.Optimizer:
    own = {"lr": 0.01, "optimizer": "adam", "weight_decay": 0.0, **own_momentum("adam", 0.8, 0.95)}
    groups = [{"params": list(critic.parameters()), **own}, {"params": list(body.parameters())}]
    return make_optimizer("momentum", groups, lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused)


def step(body: nn.Module, critic: nn.Module, *optimizers: torch.optim.Optimizer, seed: int = 0) -> None:
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    for optimizer in optimizers:
        optimizer.zero_grad()
    critic(body(x).mean((2, 3))).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_each_part_moves_as_under_its_own_optimiser(fused: bool) -> None:
    body, critic = models()
    optimizer = joined(body, critic, fused)
    assert isinstance(optimizer, JoinedOptimizers)
    assert [set(group) & {"momentum", "betas"} for group in optimizer.param_groups] == [{"betas"}, {"momentum"}]
    other_body, other_critic = models()
    sgd = torch.optim.SGD(other_body.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused)
    adam = torch.optim.Adam(other_critic.parameters(), lr=0.01, betas=(0.8, 0.95), fused=fused)
    for seed in range(4):
        for group in optimizer.param_groups:  # as a schedule does
            group["lr"] *= 0.9
        for group in (*sgd.param_groups, *adam.param_groups):
            group["lr"] *= 0.9
        step(body, critic, optimizer, seed=seed)
        step(other_body, other_critic, sgd, adam, seed=seed)
    assert equal(body, other_body)
    assert equal(critic, other_critic)


def test_its_state_is_saved_and_loaded_as_one(tmp_path: Path) -> None:
    body, critic = models()
    optimizer = joined(body, critic, None)
    step(body, critic, optimizer)
    torch.save([part.state_dict() for part in (optimizer, body, critic)], tmp_path / "state.pt")
    step(body, critic, optimizer, seed=1)
    again = (*models(),)
    resumed = joined(*again, None)
    for part, state in zip((resumed, *again), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    step(*again, resumed, seed=1)
    assert equal(body, again[0])
    assert equal(critic, again[1])
    states = [torch.cat([v.flatten() for s in o.state.values() for v in s.values()]) for o in (optimizer, resumed)]
    assert torch.equal(*states)


def test_one_optimiser_needs_no_joining() -> None:
    body, critic = models()
    groups = [{"params": list(critic.parameters()), "optimizer": "sgd"}, {"params": list(body.parameters())}]
    made = make_optimizer("sgd", groups, lr=0.1, momentum=0.9, weight_decay=0.0)
    assert type(made) is torch.optim.SGD
    assert "optimizer" not in made.param_groups[0]


def test_a_closure_is_called_once() -> None:
    body, critic = models()
    optimizer, calls = joined(body, critic, None), []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(1)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("momentum", {"momentum": 0.8}),
        ("adam", {"betas": (0.8, 0.9)}),
        ("adan", {}),
        ("rmsprop", {"momentum": 0.8}),
        ("adadelta", {}),
    ],
)
def test_momentum_by_the_name_that_an_optimiser_has(name: str, expected: dict[str, object]) -> None:
    assert own_momentum(name, 0.8, 0.9) == expected
