"""What is particular to the adversarial methods: what their critics see, whom their losses train."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import CHECKOUT
from torch import nn
from torch.nn import functional as F

from dafw.methods import CDAN, DANN, MDD, PADA, SDAT, UAN, ParetoCDAN, ParetoDA
from dafw.methods.adaptation.adversarial import AdversarialMethod
from dafw.problems import Outputs
from dafw.run.loggers import CsvLog
from dafw.testing.toys import ToyData, toy_network, toy_trainer

METHODS: list[tuple[type[AdversarialMethod], dict[str, Any]]] = [
    (DANN, {"width": 8}),
    (CDAN, {"width": 8, "entropy": True}),
    (MDD, {"ramp_steps": 2}),
    (UAN, {"width": 8, "dropout": 0.0}),
]
every_method = pytest.mark.parametrize(("owner", "options"), METHODS, ids=lambda x: getattr(x, "__name__", ""))


def make(owner: type[Any], **options: Any) -> Any:
    torch.manual_seed(0)
    return owner(toy_network(), **{"num_classes": 3, "lr": 0.05, **options})


def data() -> ToyData:
    return ToyData("a", "b", batch_size=8, steps_per_epoch=5)


@every_method
def test_the_log_has_the_critics_accuracy_and_the_ramp(
    tmp_path: Path, owner: type[Any], options: dict[str, Any]
) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    method = make(owner, **options)
    toy_trainer(tmp_path, epochs=1, logger=log).fit(method, datamodule=data())
    looked = [row for row in log.rows if row.get("diagnostics/ramp")]
    assert looked
    for row in looked:
        for domain in ("source", "target"):
            assert 0 <= float(row[f"diagnostics/critic_accuracy_{domain}"]) <= 1
        assert 0 < float(row["diagnostics/ramp"]) <= method.ramp_height


@every_method
def test_the_domain_loss_alone(tmp_path: Path, owner: type[Any], options: dict[str, Any]) -> None:
    """Callable by itself after a step; it trains the critic and the features, and not the label head."""
    method = make(owner, **options)
    toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data())
    features, logits = torch.randn(6, 8, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    method.domain_loss(Outputs(features, logits), 3).backward()
    assert logits.grad is None
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in method.critic.parameters())


@every_method
def test_the_features_gradient_is_reversed_and_scaled_the_critics_is_not(
    tmp_path: Path, owner: type[Any], options: dict[str, Any]
) -> None:
    method = make(owner, **options)
    toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data())
    features, logits = torch.randn(6, 8, requires_grad=True), torch.randn(6, 3)

    def gradients(height: float) -> list[torch.Tensor]:
        method.ramp_height = height / method.ramp * method.ramp_height if height else 0.0
        inputs = [features, *method.critic.parameters()]
        return list(torch.autograd.grad(method.domain_loss(Outputs(features, logits), 3), inputs))

    plain, scaled, off = gradients(-1.0), gradients(0.3), gradients(0.0)
    torch.testing.assert_close(scaled[0], -0.3 * plain[0])
    assert off[0].abs().max() == 0
    for one, two in zip(plain[1:], scaled[1:], strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({}, 8 * 3),
        ({"num_classes": 512}, 8 * 512),
        ({"num_classes": 513}, 1024),
        ({"num_classes": 513, "randomized": False}, 8 * 513),
        ({"randomized": True, "random_width": 5}, 5),
    ],
)
def test_what_cdans_critic_sees(options: dict[str, Any], inputs: int) -> None:
    method = make(CDAN, width=4, **options)
    assert method.critic[0].in_features == inputs
    assert {name for name in method.state_dict() if name.startswith("join.")} == (
        {"join.R_f", "join.R_g"} if inputs in (1024, 5) else set()
    )


def test_mdds_second_head_is_built_like_the_first_and_starts_apart_from_it() -> None:
    method = MDD(toy_network(head_width=5, dropout=0.5), num_classes=3)
    head = method.network.head
    assert isinstance(head, nn.Sequential)
    assert isinstance(method.critic, nn.Sequential)
    assert [type(layer) for layer in method.critic] == [type(layer) for layer in head]
    assert not torch.equal(method.critic[0].weight, head[0].weight)


@pytest.mark.parametrize(
    ("owner", "weight"), [(DANN, 2), (CDAN, 2), (PADA, 2), (SDAT, 1), (ParetoDA, 1), (ParetoCDAN, 1)]
)
def test_the_default_weight_of_the_domain_loss_is_that_of_the_methods_own_source(owner: type[Any], weight: int) -> None:
    """Papers that add the two domains' means have 2; programs that build on the Transfer-Learning-Library have 1."""
    assert make(owner, width=4).weight == weight


def test_danns_domain_loss_is_the_sum_of_the_two_domains_means(tmp_path: Path) -> None:
    """Equation 9 of Ganin et al., with domains of different sizes."""
    method = make(DANN, width=8)
    toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data())
    outputs = Outputs(torch.randn(6, 8), torch.randn(6, 3))
    scores = method.critic(outputs.features).squeeze(1)
    expected = F.softplus(-scores[:2]).mean() + F.softplus(scores[2:]).mean()
    torch.testing.assert_close(method.adapt(outputs[:2], outputs[2:], outputs)["domain"], expected)


@pytest.mark.parametrize(
    "file", ["image_folder/dann_tllib", "image_folder/cdan_tllib", "tables/office31", "tables/office_home"]
)
def test_the_recipes_of_tllib_halve_the_domain_loss(file: str) -> None:
    config = yaml.safe_load((CHECKOUT / "experiments" / f"{file}.yaml").read_text())
    models = [row["model"] for row in config.get("rows", [config])]
    weights = [model["init_args"]["weight"] for model in models if model["class_path"] in ("DANN", "CDAN")]
    assert weights == [1.0] * len(weights) != []


@pytest.mark.parametrize("owner", [DANN, CDAN, PADA])
def test_a_critic_may_drop_its_hidden_units(owner: type[AdversarialMethod]) -> None:
    def drops(**options: float) -> list[float]:
        critic = make(owner, width=8, depth=1, **options).critic
        return [layer.p for layer in critic.modules() if isinstance(layer, nn.Dropout)]

    assert drops() == []
    assert drops(critic_dropout=0.5) == [0.5]
