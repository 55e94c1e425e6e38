"""SAM's step aside: reference vectors, its length, and the way back."""

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.optim.sam import ascent, perturbed


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters))


def test_one_step_of_a_network() -> None:
    arrays = {key: torch.tensor(value) for key, value in golden("udim/sam_step.npz").items()}
    x, y = torch.cat([arrays["x0"], arrays["x1"]]).flatten(1), torch.cat([arrays["y0"], arrays["y1"]])
    names = ("0_l_weight", "0_l_bias", "1_weight", "1_bias")
    parameters = [arrays[f"before_{name}"].clone().requires_grad_(True) for name in names]

    def loss() -> Tensor:
        w, b, v, c = parameters
        return F.cross_entropy(F.linear(F.linear(x, w, b).tanh(), v, c), y)

    with perturbed(parameters, ascent(gradients(loss(), parameters), float(arrays["rho"]))):
        value = loss()
        final = gradients(value, parameters)
    np.testing.assert_allclose(value.item(), arrays["perturbed_loss"], rtol=1e-7, atol=1e-9)
    for name, parameter, gradient in zip(names, parameters, final, strict=True):
        after = parameter.detach() - float(arrays["lr"]) * gradient
        np.testing.assert_allclose(after, arrays[f"after_{name}"], rtol=1e-7, atol=1e-9)


def test_gradient_at_the_perturbed_weights() -> None:
    arrays = {key: torch.tensor(value) for key, value in golden("sagm/sagm_sam.npz").items()}
    parameters = [arrays[name].clone().requires_grad_(True) for name in ("w0", "b0")]

    def loss() -> Tensor:
        return F.cross_entropy(F.linear(arrays["X"], *parameters), arrays["Y"])

    with perturbed(parameters, ascent(gradients(loss(), parameters), float(arrays["rho"]))):
        found = gradients(loss(), parameters)
    for gradient, key in zip(found, ("sam_grad_w", "sam_grad_b"), strict=True):
        np.testing.assert_allclose(gradient, arrays[key], rtol=1e-4, atol=1e-6)


def network() -> tuple[list[nn.Parameter], Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))], torch.randn(7, 4)


def loss_of(parameters: list[nn.Parameter], x: Tensor) -> Tensor:
    return (x @ parameters[0]).exp().mean() + parameters[1].cos().sum()


@pytest.mark.parametrize("rho", [1e-3, 0.05, 2.0])
def test_the_step_has_length_rho_along_the_gradient(rho: float) -> None:
    parameters, x = network()
    g = gradients(loss_of(parameters, x), list(parameters))
    step = torch.cat([part.flatten() for part in ascent(g, rho)])
    torch.testing.assert_close(step.norm(), torch.tensor(rho))
    direction = torch.cat([part.flatten() for part in g])
    torch.testing.assert_close(F.cosine_similarity(step, direction, 0), torch.tensor(1.0))


def test_no_gradient_no_step() -> None:
    assert all(bool((step == 0).all()) for step in ascent([torch.zeros(3), torch.zeros(2, 2)], 0.05))


def test_parameters_return_to_the_last_bit() -> None:
    parameters, x = network()
    before = [parameter.detach().clone() for parameter in parameters]
    steps = ascent(gradients(loss_of(parameters, x), list(parameters)), 0.37)
    with perturbed(parameters, steps):
        for parameter, old, step in zip(parameters, before, steps, strict=True):
            assert torch.equal(parameter, old + step)
    assert all(map(torch.equal, parameters, before))
    with pytest.raises(KeyError), perturbed(parameters, steps):
        raise KeyError
    assert all(map(torch.equal, parameters, before)), "an error within leaves the parameters moved"


def test_a_vanishing_radius_gives_the_plain_gradient() -> None:
    parameters, x = network()
    plain = gradients(loss_of(parameters, x), list(parameters))
    with perturbed(parameters, ascent(plain, 0.0)):
        found = gradients(loss_of(parameters, x), list(parameters))
    assert all(map(torch.equal, found, plain))
    with perturbed(parameters, ascent(plain, 1e-6)):
        near = gradients(loss_of(parameters, x), list(parameters))
    torch.testing.assert_close(near, plain, rtol=1e-4, atol=1e-5)


def test_uphill() -> None:
    parameters, x = network()
    value = loss_of(parameters, x)
    with perturbed(parameters, ascent(gradients(value, list(parameters)), 0.05)):
        assert loss_of(parameters, x) > value


def test_a_step_for_each_parameter() -> None:
    parameters, _ = network()
    with pytest.raises(ValueError, match="1 steps for 2 parameters"), perturbed(parameters, [torch.zeros(4, 3)]):
        pass
