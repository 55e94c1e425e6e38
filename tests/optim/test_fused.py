"""Fused optimisers: where they are used, that they train as the plain ones, whatever lies how in memory."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.optim.fused import FUSED, is_fused, uses_fused
from dafw.optim.optimizers import make_optimizer
from dafw.optim.sharpness import SAM, SharpnessAware
from dafw.testing.cases import case
from dafw.testing.toys import ToyData, toy_trainer

LAST = torch.channels_last
OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    kernel, bias, late = (torch.randn(shape, generator=generator) for shape in ((4, 3, 3, 3), (5,), (2, 3)))
    return [nn.Parameter(kernel.to(memory_format=LAST)), nn.Parameter(bias), nn.Parameter(late)]


def make(name: str, parameters: list[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    groups = [{"params": parameters[:1], "lr": 0.03}, {"params": parameters[1:]}]
    return make_optimizer(name, groups, fused=fused, **OPTIONS)


def step(optimizer: torch.optim.Optimizer, number: int, memory: torch.memory_format = LAST) -> None:
    """A step whose gradients depend on its number alone. The last parameter has none in the first step."""
    generator = torch.Generator().manual_seed(number)
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to(memory_format=memory) if gradient.ndim == 4 else gradient
        if number == 0 and parameter.shape == (2, 3):
            parameter.grad = None
    optimizer.step()


def same(one: list[Tensor], other: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerance)  # type: ignore[arg-type]


def values(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("memory", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("name", FUSED)
def test_both_forms_train_the_same_whatever_lies_how_in_memory(name: str, memory: torch.memory_format) -> None:
    """Torch's kernels mix up values in unlike memory formats, and that of SGD fails if a momentum comes later."""
    found = []
    for fused in (False, True):
        parameters = weights()
        optimizer = make(name, parameters, fused)
        assert is_fused(optimizer) is fused
        for number in range(4):
            step(optimizer, number, memory)
        found.append(values(parameters))
    same(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_state_goes_on_in_the_form_of_the_optimizer_that_loads_it(
    name: str, before: bool, after: bool, tmp_path: Path
) -> None:
    parameters, resumed = weights(), weights()
    optimizer = make(name, parameters, before)
    for number in range(3):
        step(optimizer, number)
    state = deepcopy(optimizer.state_dict())
    for one in state["state"].values():  # as of a network that was in the usual memory format
        one.update({key: value.contiguous() for key, value in one.items() if isinstance(value, Tensor)})
    torch.save(state, tmp_path / "state.pt")
    again = make(name, resumed, after)
    for parameter, value in zip(resumed, values(parameters), strict=True):
        parameter.data.copy_(value)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert is_fused(again) is after
    assert again.param_groups[0]["lr"] == 0.03
    for number in range(3, 6):
        step(optimizer, number)
        step(again, number)
    exact = {"rtol": 0.0, "atol": 0.0} if before == after else {"rtol": 1e-5, "atol": 1e-6}
    same(values(parameters), values(resumed), **exact)


def test_the_choice_depends_on_the_configuration_and_the_device_alone() -> None:
    dense, gaps = [nn.Parameter(torch.ones(4, 4))], [nn.Parameter(torch.ones(4, 4)[:, ::2])]
    assert [uses_fused(name, None, dense) for name in (*FUSED, "rmsprop")] == [True] * 4 + [False]
    assert not uses_fused("sgd", None, gaps)
    assert not uses_fused("sgd", None, [nn.Parameter(torch.ones(2, device="meta"))])
    assert not uses_fused("sgd", False, dense)
    for name, parameters, said in (
        ("rmsprop", dense, "rmsprop has no fused form: leave out model.fused, or take momentum or"),
        ("sgd", gaps, "needs parameters without gaps"),
    ):
        with pytest.raises(UserError, match=said):
            uses_fused(name, True, parameters)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_gradients_are_clipped_in_any_precision(precision: str, tmp_path: Path) -> None:
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        method = case(SourceOnly).make(fused=fused, lr=0.1)
        trainer = toy_trainer(tmp_path, precision=precision, epochs=1, gradient_clip_val=1e-3)
        trainer.fit(method, datamodule=ToyData("a", "b", batch_size=4, steps_per_epoch=3))
        found.append([parameter.detach().double() for parameter in method.network.parameters()])
    same(*found, rtol=1e-5, atol=1e-5)


def test_scaled_gradients_are_divided_first_and_a_step_with_an_infinite_one_is_left_out() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer("momentum", [{"params": [parameter]}], **OPTIONS | {"weight_decay": 0.0})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (1.0, math.inf):
        optimizer.zero_grad()
        scaler.scale((factor * parameter).sum()).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9))


def test_a_sparse_gradient_names_the_key() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = make_optimizer("momentum", [{"params": list(table.parameters())}], **OPTIONS)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match=r"no sparse gradients: give model\.fused false"):
        optimizer.step()


def test_a_method_says_which_form_its_optimizer_has() -> None:
    for fused in (None, False):
        method = case(SourceOnly).make(fused=fused)
        assert method.fast_forms["fused"] is False
        assert is_fused(method.configure_optimizers()) is method.fast_forms["fused"] is (fused is None)
    wrapped = case(SourceOnly).make(sharpness=SAM()).configure_optimizers()
    assert isinstance(wrapped, SharpnessAware)
    assert is_fused(wrapped)
