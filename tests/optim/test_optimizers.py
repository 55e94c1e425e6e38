from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2

from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.optim.optimizers import choose_optimizer, make_optimizer, usable_optimizers
from dafw.testing.cases import case


def test_an_optimizer_of_second_derivatives_is_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"adahessian needs second derivatives, .*: take adamw or momentum"):
        case(SourceOnly).make(optimizer="adahessian")
    with pytest.raises(UserError, match='unknown optimizer "adamm"'):
        choose_optimizer("adamm")
    assert choose_optimizer("momentum") == "momentum"


def test_every_usable_optimizer_takes_steps_or_says_at_the_start_why_not() -> None:
    """Those of bitsandbytes and APEX need their package and a GPU. Kron is left out: it compiles for ten seconds."""
    refused = []
    for name in usable_optimizers():
        if name.startswith("kron"):
            continue
        method = case(SourceOnly).make(optimizer=name)
        try:
            optimizer = method.configure_optimizers()
        except UserError as error:
            refused.append((name, str(error)))
            continue
        before = torch.cat([parameter.detach().flatten().clone() for parameter in method.network.parameters()])
        for _ in range(2):
            optimizer.zero_grad()
            method.network(torch.rand(4, 3, 6, 6)).logits.square().mean().backward()
            optimizer.step()
        after = torch.cat([parameter.detach().flatten() for parameter in method.network.parameters()])
        assert after.isfinite().all(), name
        assert not torch.equal(before, after), name
    assert all(name.startswith(("bnb", "fused")) for name, _ in refused), refused
    assert all(said.startswith(f"the optimizer {name} cannot be made: ") for name, said in refused), refused


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["momentum", "sgd"])
def test_the_optimisers_that_need_no_timm_are_those_of_timm(name: str, fused: bool) -> None:
    def groups() -> list[dict[str, Any]]:
        return [
            {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.3},
            {"params": [torch.nn.Parameter(torch.ones(1))]},
        ]

    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.8, "weight_decay": 1e-3, "fused": fused}
    ours = make_optimizer(name, groups(), **options)
    timms = create_optimizer_v2(groups(), opt=name, filter_bias_and_bn=False, **options)
    assert type(ours) is type(timms)
    assert ours.defaults == timms.defaults
    for one, other in zip(ours.param_groups, timms.param_groups, strict=True):
        assert {key: value for key, value in one.items() if key != "params"} == {
            key: value for key, value in other.items() if key != "params"
        }
