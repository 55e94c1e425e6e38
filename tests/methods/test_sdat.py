"""SDAT against a loop written by hand, and against CDAN where it must be that."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.confusion import class_confusion
from dafw.methods import CDAN, SDAT
from dafw.nn.network import Network
from dafw.optim.schedules import Constant
from dafw.testing import case
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, differences

STEPS = STEPS_PER_EPOCH * EPOCHS
TINY = {"width": 8, "depth": 1}


def by_hand(method: SDAT, batches: list[Batch], *, rho: float, confusion: float, perturbed: bool) -> None:
    """One optimiser; the second pass is made by a copy of the network that stands aside."""
    network, critic = method.network.train(), method.critic
    weights, judge = list(network.parameters()), list(critic.parameters())
    optimizer = torch.optim.SGD([*weights, *judge], lr=0.05, momentum=0.9, weight_decay=0.01)

    def losses(model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = model(batch.x)
        task = F.cross_entropy(outputs.logits[:BATCH], batch.y)
        task = task + confusion * class_confusion(outputs.logits[BATCH:], temperature=2.0)
        scores = critic(method.join(outputs.features, outputs.logits.detach().softmax(1))).squeeze(1)
        is_source = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)]).double()
        return task, F.binary_cross_entropy_with_logits(scores, is_source)

    for i, batch in enumerate(batches):
        ramp = 2 / (1 + torch.exp(torch.tensor(-10.0 * i / STEPS, dtype=torch.float64)).item()) - 1
        task, domain = losses(network, batch)
        uphill = torch.autograd.grad(task, weights, retain_graph=True)
        length = torch.cat([g.flatten() for g in uphill]).norm()
        aside = copy.deepcopy(network)
        with torch.no_grad():
            for parameter, gradient in zip(aside.parameters(), uphill, strict=True):
                parameter += rho * gradient / length
        task, domain_aside = losses(aside, batch)
        smooth = torch.autograd.grad(task, list(aside.parameters()), retain_graph=True)
        adversary, at = (domain_aside, aside) if perturbed else (domain, network)
        found = torch.autograd.grad(adversary, [*at.parameters(), *judge], allow_unused=True)
        for parameter, one, other in zip(weights, smooth, found, strict=False):
            parameter.grad = one if other is None else one - ramp * other
        for parameter, other in zip(judge, found[len(weights) :], strict=True):
            parameter.grad = other
        optimizer.step()


@pytest.mark.parametrize("confusion", [0.0, 0.7])
@pytest.mark.parametrize("domain_at", ["weights", "perturbed"])
def test_against_a_loop_written_by_hand(tmp_path: Path, domain_at: str, confusion: float) -> None:
    options = {**TINY, "rho": 0.3, "confusion": confusion, "domain_at": domain_at}
    item = case(SDAT, **options, weight_decay=0.01, schedule=Constant())
    method, _ = item.train(tmp_path, precision="64-true")
    expected = case(SDAT, **options).make().double()
    assert isinstance(expected, SDAT)
    data = item.make_data(steps_per_epoch=STEPS)
    data.setup("fit")
    by_hand(expected, list(data.train_dataloader()), rho=0.3, confusion=confusion, perturbed=domain_at == "perturbed")
    found = differences(method.state_dict(), expected.state_dict())
    assert all(difference < 1e-10 for difference in found.values()), found


@pytest.mark.parametrize("domain_at", ["weights", "perturbed"])
def test_without_a_radius_it_is_cdan(tmp_path: Path, domain_at: str) -> None:
    tiny = {**TINY, "entropy": True, "critic_norm": True}
    smooth, _ = case(SDAT, **tiny, rho=0.0, confusion=0.0, domain_at=domain_at).train(tmp_path, precision="64-true")
    plain, _ = case(CDAN, **tiny, weight=1.0).train(tmp_path, precision="64-true")
    found = differences(smooth.state_dict(), plain.state_dict())
    assert all(difference < 1e-12 for difference in found.values()), found


def test_running_statistics_follow_the_first_pass_alone(tmp_path: Path) -> None:
    method, _ = case(SDAT, **TINY, rho=5.0, lr=1e-12).train(tmp_path)
    plain, _ = case(CDAN, **TINY, weight=1.0, lr=1e-12).train(tmp_path)
    for name, value in method.network.state_dict().items():
        if "num_batches" in name:
            assert value == STEPS
        torch.testing.assert_close(value, plain.network.state_dict()[name])


def test_a_negative_radius() -> None:
    with pytest.raises(UserError, match="rho"):
        case(SDAT, rho=-0.1).make()
