"""UDIM against steps of its authors' code, against loops written by hand, and what must not change."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from golden_vectors import golden
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import ERM, UDIM
from dafw.nn.network import Network
from dafw.optim.schedules import Constant
from dafw.optim.sharpness import GAM, SAGM, SAM, Sharpness
from dafw.problems import Classification
from dafw.problems.base import Problem
from dafw.testing import case
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, differences
from dafw.testing.steps import StepWatch
from dafw.testing.toys import ToyData, ToyNet, toy_network

EXACT: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
STEPS = STEPS_PER_EPOCH * EPOCHS
NAMES = {
    "backbone.l.weight": "0_l_weight",
    "backbone.l.bias": "0_l_bias",
    "head.weight": "1_weight",
    "head.bias": "1_bias",
}


class Tanh(nn.Module):
    """The vectors' features: tanh of a linear layer, images (N, 2, 3, 3) -> (N, 5)."""

    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x.flatten(1)).tanh()


class Alone(UDIM):
    """Without a trainer: one step of plain SGD, whose gradients it keeps."""

    moved: dict[str, Tensor]

    def apply_gradients(self, *parts: Any) -> None:
        [(parameters, gradients)] = parts
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        self.moved = {names[id(p)]: g for p, g in zip(parameters, gradients, strict=True)}

    @property
    def progress(self) -> float:
        return 0.5


def alone(file: str, **arguments: Any) -> tuple[Alone, Batch, dict[str, Tensor]]:
    """The vectors' method, batch and arrays."""
    arrays = {key: torch.tensor(value) for key, value in golden(f"udim/{file}.npz").items()}
    network = Network(f"{__name__}.Tanh", in_channels=2, mean=[0.0], std=[1.0])
    options: dict[str, Any] = {"mode": "authors", "weight": float(arrays["worst_weight"])}
    pixels = arguments.get("perturb", "pixels") == "pixels"  # whose step is one pixel's length over the rows
    options |= {"radius": float(arrays["syn_lr"]) / (math.sqrt(len(arrays["y"])) if pixels else 1)}
    options |= {"sharpness": SAM(float(arrays["rho"]))}
    method = Alone(network, num_classes=len(arrays["before_1_bias"]), **options | arguments).double()
    state = {name: arrays[f"before_{key}"] for name, key in NAMES.items()}
    method.network.load_state_dict(state)
    rows = len(arrays["y"])
    domain = torch.arange(2).repeat_interleave(rows // 2)
    batch = Batch(arrays["x"], arrays["y"], domain, torch.arange(rows), rows)
    data = ToyData(["a", "c"], "b")
    trainer = SimpleNamespace(datamodule=data, global_rank=0, world_size=1, log_every_n_steps=10**9)
    method._trainer = trainer  # type: ignore[assignment]
    method.steps_started = 1
    return method, batch, arrays


@pytest.mark.parametrize(("file", "pooled"), [("step_pixel_pooled", True), ("step_pixel_domainwise", None)])
def test_the_authors_step_that_moves_pixels(file: str, pooled: bool | None) -> None:
    method, batch, arrays = alone(file, pooled=pooled)
    climb = method.climb(batch)
    assert_allclose(climb.objective, arrays["objective_for_perturbation"], **EXACT)
    assert_allclose(climb.slopes[0], arrays["grad_x"], **EXACT)
    assert_allclose(climb.crafted, arrays["syn_x"], **EXACT)
    check_step(method, batch, arrays)


def test_the_authors_step_that_moves_no_style() -> None:
    method, batch, arrays = alone("step_advstyle_pooled", pooled=True, perturb="style")
    climb = method.climb(batch)
    assert_allclose(climb.objective, arrays["objective_for_perturbation"], **EXACT)
    for found, key in zip(climb.slopes, ("grad_mu", "grad_sig"), strict=True):
        assert_allclose(-found, arrays[key], **EXACT)
    assert_allclose(climb.crafted, arrays["syn_x"], **EXACT)
    torch.testing.assert_close(climb.crafted, batch.x, rtol=0, atol=1e-13)
    check_step(method, batch, arrays)


def test_the_style_that_is_rebuilt() -> None:
    method, batch, arrays = alone("step_advstyle_pooled", perturb="style", mode="paper")
    assert_allclose(method.climb(batch).crafted, arrays["syn_x_recomputed"], **EXACT)


def check_step(method: Alone, batch: Batch, arrays: dict[str, Tensor]) -> None:
    terms = method.losses(batch)
    weight, rate = method.weight, float(arrays["lr"])
    assert_allclose(terms["inconsistency"].detach() / weight, arrays["inconsistency"], **EXACT)
    method.training_step(batch, 0)
    before = dict(method.network.named_parameters())
    for name, key in NAMES.items():
        assert_allclose(method.moved[name], arrays[f"g_sam_{key}"] + weight * arrays[f"g_inc_{key}"], **EXACT)
        assert_allclose(before[name].detach() - rate * method.moved[name], arrays[f"after_{key}"], **EXACT)
    method.weight = 0.0
    method.training_step(batch, 0)
    for name, key in NAMES.items():
        assert_allclose(method.moved[name], arrays[f"g_sam_{key}"], **EXACT)


def test_the_slope_is_that_of_the_objective() -> None:
    """Against central differences of CE + rho ||dCE/dtheta||, the gradient within taken by another way."""
    method, batch, _ = alone("step_pixel_pooled", rho=0.7)
    weights = {name: value.detach() for name, value in method.network.named_parameters()}

    def objective(x: Tensor) -> Tensor:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(method.network, weights, (x,)).logits, batch.y)

        found, value = torch.func.grad_and_value(loss)(weights)
        return value + 0.7 * torch.cat([part.flatten() for part in found.values()]).norm()

    climb = method.climb(batch)
    torch.testing.assert_close(climb.objective, objective(batch.x))
    for at in [(0, 0, 0, 0), (3, 1, 2, 1), (7, 0, 1, 2)]:
        step = torch.zeros_like(batch.x)
        step[at] = 1e-5
        expected = (objective(batch.x + step) - objective(batch.x - step)) / 2e-5
        torch.testing.assert_close(climb.slopes[0][at], expected, rtol=1e-6, atol=1e-9)


def test_the_copies_lie_uphill_at_the_radius() -> None:
    method, batch, _ = alone("step_pixel_pooled", mode="paper", radius=1e-3)
    here = method.climb(batch)
    moves = (here.crafted - batch.x).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(moves, torch.full_like(moves, 1e-3))
    moved = Batch(here.crafted, batch.y, batch.domain, batch.index, batch.num_source)
    assert method.climb(moved).objective > here.objective


@pytest.mark.parametrize("rows", [6, 24])
@pytest.mark.parametrize("mode", ["paper", "authors"])
def test_the_default_step_is_that_of_the_authors(mode: Literal["paper", "authors"], rows: int) -> None:
    """F.normalize(gradient, dim=0) * 10: each pixel's move has length 10 over the rows, whatever their number."""
    torch.manual_seed(0)
    method = UDIM(toy_network(mean=[0.5], std=[0.25]), num_classes=3, mode=mode).double()
    images = torch.randint(0, 256, (rows, 3, 6, 6), dtype=torch.uint8)
    batch = Batch(images, torch.arange(rows) % 3, torch.zeros(rows, dtype=torch.int64), torch.arange(rows), rows)
    climb = method.climb(batch)
    moved = method.network.normalise(climb.crafted) - method.network.normalise(images)
    theirs = F.normalize(climb.slopes[0], dim=0) * 10
    torch.testing.assert_close(moved.norm(), theirs.norm(), rtol=1e-5, atol=0)
    if mode == "authors":
        torch.testing.assert_close(moved, theirs, rtol=1e-5, atol=1e-6)
    else:
        per_image = moved.flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(per_image, torch.full((rows,), 10 / math.sqrt(rows)).double(), rtol=1e-5, atol=0)


def test_the_default_rate_of_a_style_is_that_of_the_authors() -> None:
    method, batch, _ = alone("step_advstyle_pooled", perturb="style", mode="paper", radius=None)
    other, _, _ = alone("step_advstyle_pooled", perturb="style", mode="paper", radius=10.0)
    assert torch.equal(method.climb(batch).crafted, other.climb(batch).crafted)


def test_no_radius_leaves_the_norm_alone() -> None:
    method, batch, _ = alone("step_pixel_pooled", radius=0.0, pooled=True, mode="paper")
    climb = method.climb(batch)
    assert torch.equal(climb.crafted, climb.images)
    outputs = method.network(batch.x)
    residuals = outputs.logits.softmax(1) - F.one_hot(batch.y, 3)
    norm = torch.einsum("nk,nd->nkd", residuals, outputs.features).square().mean() + residuals.square().mean()
    torch.testing.assert_close(method.inconsistency(climb.images, climb.crafted, batch), norm)


def test_the_order_of_the_rows_within_a_domain_does_not_matter() -> None:
    method, batch, _ = alone("step_pixel_domainwise")
    half = len(batch) // 2
    order = torch.cat([torch.randperm(half), half + torch.randperm(half)])
    other = Batch(batch.x[order], batch.y[order], batch.domain, batch.index, len(batch))
    value, again = (method.losses(one)["inconsistency"] for one in (batch, other))
    torch.testing.assert_close(value, again)
    assert value >= 0
    across = Batch(*(torch.roll(t, 2, 0) for t in (batch.x, batch.y)), batch.domain, batch.index, len(batch))
    assert abs(method.losses(across)["inconsistency"] - value) > 1e-6


def test_one_radius_whatever_the_scale_of_the_network_and_the_form_of_its_images() -> None:
    """The radius is in normalised units: in [0, 1] a step of r in a channel of deviation s is r * s long."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    std = [0.1, 0.2, 0.4]
    network = toy_network(mean=[0.4, 0.5, 0.6], std=std)
    method = UDIM(network, num_classes=3, radius=2.0).double()
    batch = Batch(images, torch.arange(4) % 3, torch.zeros(4, dtype=torch.int64), torch.arange(4), 4)
    climb = method.climb(batch)
    torch.testing.assert_close(climb.images, images.double() / 255)
    normalised = network.normalise(climb.crafted) - network.normalise(images)
    torch.testing.assert_close(normalised.flatten(1).square().mean(1).sqrt(), torch.full((4,), 2.0).double())
    moved = (climb.crafted - climb.images) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(moved, normalised, rtol=1e-6, atol=1e-6)


def by_hand(
    method: UDIM, batches: list[Batch], rule: Callable[..., list[Tensor]], weight: float, radius: float
) -> None:
    """Steps on a network without batch normalisation, by functional calls and per-row gradients."""
    network = method.network
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05, momentum=0.9)
    for batch in batches:
        weights = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        x = ((network.normalise(batch.x[: len(batch.y)]) + 1) / 2).requires_grad_()

        def loss(at: dict[str, Tensor], x: Tensor = x, y: Tensor = batch.y) -> Tensor:
            return F.cross_entropy(functional_call(network, at, (x,)).logits, y)

        here = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
        length = torch.cat([part.flatten() for part in here]).norm()
        slope = torch.autograd.grad(loss(weights) + 0.1 * length, x)[0] * 0.5  # images are normalised by 1/2
        step = slope / slope.square().mean((1, 2, 3), keepdim=True).sqrt()
        crafted = x.detach() + 0.5 * radius * step

        def rows(x: Tensor, y: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
            outputs = functional_call(network, weights, (x,))
            residuals = outputs.logits.softmax(1) - F.one_hot(y, 3)
            return torch.einsum("nk,nd->nkd", residuals, F.pad(outputs.features, (0, 1), value=1.0))

        inconsistency = torch.zeros((), dtype=torch.float64)
        for part in (slice(BATCH), slice(BATCH, None)):
            clean, other = rows(x.detach()[part], batch.y[part]), rows(crafted[part], batch.y[part])
            mismatch = (clean.var(0, correction=0) - other.var(0, correction=0)).square().mean() / 4
            inconsistency = inconsistency + mismatch + other[..., :-1].square().mean() + other[..., -1].square().mean()
        penalty = torch.autograd.grad(inconsistency, list(weights.values()))
        sharp = rule(weights, loss, [part.detach() for part in here], length.detach())
        for parameter, one, another in zip(parameters.values(), sharp, penalty, strict=True):
            parameter.grad = one + weight * another
        optimizer.step()


def sam(weights: dict[str, Tensor], loss: Callable[..., Tensor], here: list[Tensor], length: Tensor) -> list[Tensor]:
    aside = {k: (w + 0.1 * g / length).detach().requires_grad_() for (k, w), g in zip(weights.items(), here)}
    return list(torch.autograd.grad(loss(aside), list(aside.values())))


def sagm(weights: dict[str, Tensor], loss: Callable[..., Tensor], here: list[Tensor], length: Tensor) -> list[Tensor]:
    aside = {k: (w + (0.1 / length - 0.01) * g).detach().requires_grad_() for (k, w), g in zip(weights.items(), here)}
    return [(a + b) / 2 for a, b in zip(torch.autograd.grad(loss(aside), list(aside.values())), here)]


class Plain(ToyNet):
    """Without batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


@pytest.mark.parametrize(("rule", "hand"), [(SAM(0.1), sam), (SAGM(0.1, 0.01), sagm)])
def test_against_a_loop_written_by_hand(rule: Sharpness, hand: Any, tmp_path: Path) -> None:
    item = case(UDIM, warmup=0.0, weight=3.0, radius=2.0, schedule=Constant())

    def make() -> UDIM:
        torch.manual_seed(1)
        network = toy_network(f"{__name__}.Plain")
        options = {"num_classes": 3, "lr": 0.05, "sharpness": rule, **item.arguments}
        return UDIM(network, **options).double()

    method, expected = make(), make()
    item.train(tmp_path, method=method, precision="64-true")
    data = item.make_data(steps_per_epoch=STEPS)
    data.setup("fit")
    by_hand(expected, list(data.train_dataloader()), hand, weight=3.0, radius=2.0)
    found = differences(method.state_dict(), expected.state_dict())
    assert all(difference < 1e-10 for difference in found.values()), found


@pytest.mark.parametrize("rule", [SAM(0.3), SAGM(0.3, 0.1), GAM(0.1)])
def test_without_weight_it_is_erm_with_the_same_rule(rule: Sharpness, tmp_path: Path) -> None:
    watch = StepWatch()
    method, _ = case(UDIM, weight=0.0, sharpness=rule, ema_decay=0.8).train(tmp_path, callbacks=[watch])
    plain, _ = case(ERM, sharpness=rule, ema_decay=0.8).train(tmp_path)
    assert not differences(method.state_dict(), plain.state_dict())
    assert watch.passes[0] == rule.passes


@pytest.mark.parametrize("rule", [SAM(0.3), GAM(0.1)])
def test_the_rule_alone_warms_up(rule: Sharpness, tmp_path: Path) -> None:
    watch = StepWatch()
    item = case(UDIM, warmup=0.5, sharpness=rule)
    item.train(tmp_path, callbacks=[watch], limit_val_batches=0)
    assert watch.passes == [rule.passes] * (STEPS // 2) + [1 + rule.passes] * (STEPS // 2)
    assert not watch.host_reads


def test_running_statistics_follow_the_first_pass_alone(tmp_path: Path) -> None:
    method, _ = case(UDIM, warmup=0.0, lr=1e-12, radius=30.0).train(tmp_path)
    plain, _ = case(ERM, lr=1e-12).train(tmp_path)
    for name, value in method.network.state_dict().items():
        if "num_batches" in name:
            assert value == STEPS
        torch.testing.assert_close(value, plain.network.state_dict()[name])


@pytest.mark.parametrize("network", [{"head": "weight_norm"}, {"head_width": 5}, {"bottleneck": 4}])
def test_the_last_layer_of_other_heads(network: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method = UDIM(toy_network(**network), num_classes=3, weight=1.0).double()
    images = torch.randint(0, 256, (6, 3, 6, 6), dtype=torch.uint8)
    batch = Batch(images, torch.arange(6) % 3, torch.arange(2).repeat_interleave(3), torch.arange(6), 6)
    terms = method.losses(batch)
    found = torch.autograd.grad(terms["inconsistency"], list(method.network.parameters()))
    assert all(bool(gradient.abs().max() > 0) for gradient in found)


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    network = Network("vit_tiny_patch16_224", backbone_args=options)
    method = UDIM(network, num_classes=3, radius=1.0)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(images, torch.arange(4) % 3, torch.arange(2).repeat_interleave(2), torch.arange(4), 4)
    assert all(bool(term.isfinite()) for term in method.losses(batch).values())


def test_layers_that_ask_for_the_domain_of_each_row(tmp_path: Path) -> None:
    network = {"backbone": "test_resnet", "mixstyle": [1], "mixstyle_pairs": "cross_domain"}
    item = replace(case(UDIM, warmup=0.0), network=network)
    method, _ = item.train(tmp_path, epochs=1, limit_val_batches=0)
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


class Other(Problem):
    """No classes."""


class Bag(nn.Module):
    """A label head that is no linear layer."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.body = ToyNet()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return found

    def make_head(self, num_classes: int) -> nn.Module:
        return nn.Bilinear(8, 8, num_classes)


@pytest.mark.parametrize(
    ("options", "network", "said"),
    [
        ({"radius": -1.0}, {}, "radius must be 0 or more, not -1.0"),
        ({"warmup": float("nan")}, {}, "warmup must be 0 or more"),
        ({"mode": "author"}, {}, 'unknown mode "author": did you mean "authors"'),
        ({"problem": Other()}, {}, "UDIM is a method for classification, and model.problem is Other"),
        ({}, {"compile": True}, "network.compile: false"),
        ({}, {"backbone": f"{__name__}.Bag"}, "ends in a linear layer, not in Bilinear"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], network: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        UDIM(toy_network(**network), num_classes=3, **options)


def test_defaults() -> None:
    method = UDIM(toy_network(), num_classes=3)
    assert isinstance(method.sharpness, SAM)
    assert method.sharpness.rho == method.rho == 0.05
    assert UDIM(toy_network(), num_classes=3, sharpness=SAGM(0.3)).rho == 0.3
    assert isinstance(method.problem, Classification)
