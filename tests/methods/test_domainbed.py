"""DomainBed's baselines, beyond the contract: what each is for."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.methods import CORAL, IRM, MMD, GroupDRO, Method, VREx
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import toy_network


def rows(count: int, n: int = 6) -> tuple[list[Outputs], list[Tensor]]:
    """Outputs and labels of domains, the later the larger the loss."""
    generator = torch.Generator().manual_seed(8)
    y = [torch.randint(3, (n,), generator=generator) for _ in range(count)]
    logits = [torch.randn(n, 3, generator=generator) + (2 - m) * torch.eye(3)[labels] for m, labels in enumerate(y)]
    features = [torch.randn(n, 8, generator=generator) + m for m in range(count)]
    return [Outputs(f, z) for f, z in zip(features, logits, strict=True)], y


def make(method: type[Method], count: int, **arguments: Any) -> Any:
    if method is GroupDRO:
        arguments["num_sources"] = count
    return method(toy_network(), num_classes=3, **arguments)


def penalty(method: type[Method], domains: list[Outputs], labels: list[Tensor]) -> Tensor:
    (term,) = make(method, len(domains)).penalise(domains, labels).values()
    return term


every_penalty = pytest.mark.parametrize("method", [CORAL, GroupDRO, IRM, MMD, VREx])


@every_penalty
def test_the_order_of_the_domains_does_not_matter(method: type[Method]) -> None:
    domains, labels = rows(3)
    torch.testing.assert_close(penalty(method, domains[::-1], labels[::-1]), penalty(method, domains, labels))


@pytest.mark.parametrize("method", [CORAL, GroupDRO, MMD, VREx])
def test_one_source_leaves_nothing_to_penalise(method: type[Method]) -> None:
    assert float(penalty(method, *rows(1))) == pytest.approx(0, abs=1e-7)


def test_irm_asks_for_one_source_to_be_classified_optimally_too() -> None:
    (one,), y = rows(1)
    assert penalty(IRM, [one], y) != 0
    flat = Outputs(one.features, torch.zeros(6, 3))
    assert penalty(IRM, [flat], [torch.tensor([0, 1, 2, 0, 1, 2])]) == 0


def test_group_dro_favours_the_worst_source() -> None:
    domains, labels = rows(3)
    method = make(GroupDRO, 3, rate=1.0)
    shares = [method.q.clone()]
    for _ in range(30):
        excess = method.penalise(domains, labels)["reweighted"]
        shares.append(method.q.clone())
    risks = torch.stack([method.problem.loss(one, y) for one, y in zip(domains, labels, strict=True)])
    assert risks.argmax() == 2
    assert all(later[2] > earlier[2] for earlier, later in pairwise(shares[1:10]))
    torch.testing.assert_close(method.q.sum(), torch.tensor(1.0))
    torch.testing.assert_close(risks.mean() + excess, risks.max(), rtol=1e-3, atol=1e-3)


def test_vrex_is_the_variance_of_the_losses() -> None:
    domains, labels = rows(3)
    method = make(VREx, 3, early_weight=2.0)
    risks = torch.stack([method.problem.loss(one, y) for one, y in zip(domains, labels, strict=True)])
    torch.testing.assert_close(method.penalise(domains, labels)["variance"], 2 * risks.var(correction=0))


@pytest.mark.parametrize("method", [IRM, VREx])
def test_the_weight_jumps_at_its_step(method: type[Method]) -> None:
    model = make(method, 2, weight=100.0, early_weight=1.0, anneal_steps=5)
    weights = []
    for started in range(1, 9):
        model.steps_started = started
        weights.append(model.penalty_weight)
    assert weights == [1.0] * 5 + [100.0] * 3
    with pytest.raises(UserError, match="anneal_steps"):
        make(method, 2, anneal_steps=-1)


@pytest.mark.parametrize("method", [IRM, VREx])
def test_the_optimiser_forgets_at_the_jump(method: type[Method], tmp_path: Path) -> None:
    """With equal weights before and after, the reset alone makes the difference; Adam's count of steps shows it."""
    weights: dict[str, Any] = {"weight": 1.0, "early_weight": 1.0, "anneal_steps": 5, "optimizer": "adam", "lr": 0.01}
    item = case(method, **weights)
    reset, trainer = item.train(tmp_path)
    kept, other = item.train(tmp_path, method=item.make(reset_optimizer=False))
    counts = [{int(state["step"]) for state in t.optimizers[0].state.values()} for t in (trainer, other)]
    assert counts == [{3}, {8}]
    assert differences(reset.state_dict(), kept.state_dict())
