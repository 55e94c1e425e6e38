"""Rules of sharpness, and the optimiser that follows them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.errors import UserError
from dafw.optim.sharpness import GAM, SAGM, SAM, GAMObjective, Sharpness, SharpnessAware


@contextmanager
def nothing(number: int) -> Iterator[None]:
    yield


def linear_problem() -> tuple[dict[str, Tensor], nn.Linear]:
    arrays = {key: torch.tensor(value) for key, value in golden("sagm/sagm_sam.npz").items()}
    model = nn.Linear(arrays["w0"].shape[1], len(arrays["b0"]), dtype=arrays["w0"].dtype)
    with torch.no_grad():
        model.weight.copy_(arrays["w0"])
        model.bias.copy_(arrays["b0"])
    return arrays, model


def descend(rule: Sharpness) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """The vectors, what was descended by a step of rate 1 from their weights, and the number of passes."""
    arrays, model = linear_problem()
    optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=1.0), rule, nothing)
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        loss = F.cross_entropy(model(arrays["X"]), arrays["Y"])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    moved = [arrays["w0"] - model.weight.detach(), arrays["b0"] - model.bias.detach()]
    return arrays, moved, passes


def gradient(arrays: dict[str, Tensor], w: Tensor, b: Tensor) -> list[Tensor]:
    points = [w.clone().requires_grad_(True), b.clone().requires_grad_(True)]
    return list(torch.autograd.grad(F.cross_entropy(F.linear(arrays["X"], *points), arrays["Y"]), points))


def test_the_authors_step_of_sagm() -> None:
    vectors = golden("sagm/sagm_sam.npz")
    arrays, moved, passes = descend(SAGM(float(vectors["rho"]), float(vectors["alpha"])))
    assert passes == SAGM.passes == 2
    for found, key in zip(moved, ("w", "b"), strict=True):
        np.testing.assert_allclose(found, arrays[f"{key}0"] - arrays[f"{key}_after_sgd_lr1"], rtol=1e-4, atol=1e-6)


def test_sam_descends_the_gradient_at_the_perturbed_weights() -> None:
    arrays, moved, passes = descend(SAM(float(golden("sagm/sagm_sam.npz")["rho"])))
    assert passes == SAM.passes == 2
    for found, key in zip(moved, ("sam_grad_w", "sam_grad_b"), strict=True):
        np.testing.assert_allclose(found, arrays[key], rtol=1e-4, atol=1e-6)


def test_sagm_is_half_of_sam_and_half_of_the_plain_gradient_without_alpha() -> None:
    arrays, both, _ = descend(SAGM(0.05, 0.0))
    _, uphill, _ = descend(SAM(0.05))
    plain = gradient(arrays, arrays["w0"], arrays["b0"])
    for found, there, here in zip(both, uphill, plain, strict=True):
        torch.testing.assert_close(found, (there + here) / 2)


@pytest.mark.parametrize("rule", [SAM(0.0), SAGM(0.0, 0.0), GAM(0.0, 0.0), GAMObjective(0.05, 0.1, 0.0)])
def test_a_rule_switched_off_descends_the_plain_gradient(rule: Sharpness) -> None:
    arrays, moved, passes = descend(rule)
    assert passes == rule.passes
    torch.testing.assert_close(moved, gradient(arrays, arrays["w0"], arrays["b0"]))


@pytest.mark.parametrize(
    ("rho", "rho_norm", "alpha", "beta", "gamma"), [(0.03, 0.2, 0.1, 0.1, 0.05), (0.3, 0.5, 0.6, 1.5, 0.7)]
)
def test_the_authors_step_of_gam(rho: float, rho_norm: float, alpha: float, beta: float, gamma: float) -> None:
    """Against their update, written by hand on flat vectors: four gradients, their mixtures, one projection."""
    arrays, moved, passes = descend(GAM(rho, rho_norm, alpha, beta, gamma))
    assert passes == GAM.passes == 4
    shapes = arrays["w0"].shape, arrays["b0"].shape
    theta = np.concatenate([arrays["w0"].numpy().ravel(), arrays["b0"].numpy().ravel()]).astype(np.float64)

    def at(point: np.ndarray) -> np.ndarray:
        w, b = np.split(point, [shapes[0].numel()])
        parts = torch.from_numpy(w.reshape(shapes[0])), torch.from_numpy(b.reshape(shapes[1]))
        double = {name: value.double() if value.is_floating_point() else value for name, value in arrays.items()}
        return np.concatenate([part.numpy().ravel() for part in gradient(double, *parts)])

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.sqrt(np.sum(vector**2))

    g0 = at(theta)
    g1 = at(theta + rho * unit(g0))
    moved_on = theta + rho_norm * unit(g1 - g0)
    g2 = at(moved_on)
    g3 = at(moved_on + rho * unit(g2))
    mixed = g0 + abs(1 - beta) * g2
    new = alpha * g1 + (1 - alpha) * g3
    expected = new - gamma * (mixed - np.dot(mixed, unit(new)) * unit(new))
    found = np.concatenate([part.numpy().ravel() for part in moved])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=3e-6)
    assert np.abs(expected - g0).max() > 1e-3


def test_the_objective_of_gam_adds_the_slope_of_the_gradients_norm() -> None:
    """Against automatic differentiation of the norm, at the point where the rule takes it."""
    rho_norm = 1e-3
    arrays, moved, passes = descend(GAMObjective(1e-3, rho_norm, 2.0))
    assert passes == GAMObjective.passes == 4
    points = [arrays["w0"].double().requires_grad_(True), arrays["b0"].double().requires_grad_(True)]

    def slope(points: list[Tensor]) -> list[Tensor]:
        loss = F.cross_entropy(F.linear(arrays["X"].double(), *points), arrays["Y"])
        squares = [part.square().sum() for part in torch.autograd.grad(loss, points, create_graph=True)]
        norm = torch.stack(squares).sum().sqrt()
        return list(torch.autograd.grad(norm, points))

    plain = gradient(arrays, arrays["w0"], arrays["b0"])
    for found, here, more in zip(moved, plain, slope(points), strict=True):
        torch.testing.assert_close(found - here, (2.0 * rho_norm * more).float(), rtol=0.1, atol=2e-5)


def test_what_has_no_gradient_is_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SharpnessAware(torch.optim.SGD([used, unused], lr=0.1, weight_decay=0.1), SAM(0.1), nothing)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))


def test_no_step_without_a_closure() -> None:
    optimizer = SharpnessAware(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), SAM(), nothing)
    with pytest.raises(RuntimeError, match="needs a closure"):
        optimizer.step()


def test_state_and_groups_are_those_of_the_optimiser_within() -> None:
    parameter = nn.Parameter(torch.ones(2))
    base = torch.optim.Adam([parameter], lr=0.1)
    optimizer = SharpnessAware(base, SAM(), nothing)
    parameter.grad = torch.ones(2)
    base.step()
    assert optimizer.param_groups is base.param_groups
    again = SharpnessAware(torch.optim.Adam([parameter], lr=0.1), SAM(), nothing)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[parameter]["exp_avg"], base.state[parameter]["exp_avg"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SAM(-1.0), "rho must be 0 or more, not -1.0"),
        (lambda: SAGM(alpha=-0.1), "alpha must be 0 or more"),
        (lambda: GAM(rho_norm=float("nan")), "rho_norm must be 0 or more, not nan"),
        (lambda: GAM(alpha=1.5), "alpha must be from 0 to 1, not 1.5"),
        (lambda: GAMObjective(rho=0.0), "more than 0"),
    ],
)
def test_wrong_lengths(make: type[Sharpness], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
