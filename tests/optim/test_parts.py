"""Learning rate, momentum and weight decay of single parts of a model."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dafw.errors import UserError
from dafw.methods import DANN, MDD
from dafw.testing.cases import case
from dafw.testing.toys import toy_network


def make(owner: Any = DANN, **options: Any) -> Any:
    network = toy_network(bottleneck=4, backbone_lr=options.pop("backbone_lr", 1.0))
    return owner(network, **{"num_classes": 3, "lr": 0.1, "weight_decay": 0.01, "width": 5, **options})


def settings(method: Any) -> dict[str, tuple[float, float, float]]:
    """By part: learning rate, momentum and weight decay of each of its parameters, which are in one group alone."""
    found: dict[str, tuple[float, float, float]] = {}
    groups = method.configure_optimizers().param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))
    for name, parameters in method.named_parts().items():
        for parameter in parameters:
            (group,) = [each for each in groups if any(one is parameter for one in each["params"])]
            value = tuple(round(group[key], 9) for key in ("lr", "momentum", "weight_decay"))
            assert found.setdefault(name, value) == value
    return found


def test_a_part_has_its_own_settings_and_all_others_those_of_the_method() -> None:
    plain = (0.1, 0.9, 0.01)
    assert settings(make()) == dict.fromkeys(("backbone", "bottleneck", "head", "critic"), plain)
    parts = {"backbone": {"momentum": 0.0}, "head": {"lr": 2.0}, "critic": {"lr": 10.0, "weight_decay": 0.0}}
    assert settings(make(parts=parts)) == {
        "backbone": (0.1, 0.0, 0.01),
        "bottleneck": plain,
        "head": (0.2, 0.9, 0.01),
        "critic": (1.0, 0.9, 0.0),
    }
    assert settings(make(backbone_lr=0.1, parts={"backbone": {"momentum": 0.5}}))["backbone"] == (0.01, 0.5, 0.01)


def test_the_rate_that_is_logged_stays_that_of_the_last_group() -> None:
    assert make(parts={"head": {"lr": 7.0}}).configure_optimizers().param_groups[-1]["lr"] == 0.1


def test_a_step_is_that_of_optimisers_of_the_parts() -> None:
    """As two optimisers of torch, the backbone's without momentum."""
    torch.manual_seed(0)
    method = make(parts={"backbone": {"momentum": 0.0}}, schedule=None).double()
    by_hand = make(parts=None).double()
    by_hand.load_state_dict(method.state_dict())
    optimizer = method.configure_optimizers()
    inside = list(by_hand.network.backbone.parameters())
    others = [p for p in by_hand.parameters() if all(p is not one for one in inside)]
    pair = (
        torch.optim.SGD(inside, lr=0.1, weight_decay=0.01),
        torch.optim.SGD(others, lr=0.1, momentum=0.9, weight_decay=0.01),
    )
    for step in range(3):
        images = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for one, optimizers in ((method, (optimizer,)), (by_hand, pair)):
            for each in optimizers:
                each.zero_grad()
            F.cross_entropy(one.network(images).logits, torch.arange(6) % 3).backward()
            for each in optimizers:
                each.step()
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": {"critik": {"lr": 1.0}}}, r'unknown part in model\.parts "critik": did you mean "critic"'),
        ({"parts": {"head": {"rate": 1.0}}}, r'unknown option of model\.parts\.head "rate"'),
        ({"parts": {"head": {"momentum": 1.0}}}, r"model\.parts\.head\.momentum must be at least 0 and below 1, not 1"),
        ({"parts": {"head": {"lr": -1.0}}}, r"model\.parts\.head\.lr must be 0 or more, not -1"),
        ({"parts": {"backbone": {"lr": 2.0}}, "backbone_lr": 0.1}, "two rates of one part: give one"),
        ({"parts": {"head": {"momentum": 0.5}}, "optimizer": "adamw"}, r"head\.momentum does not apply to .* adamw"),
    ],
)
def test_mistakes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**options).configure_optimizers()


def test_the_second_head_of_mdd_is_its_critic() -> None:
    method = case(MDD).make(parts={"critic": {"lr": 3.0}}, lr=0.1)
    assert settings(method)["critic"][0] == 0.3
