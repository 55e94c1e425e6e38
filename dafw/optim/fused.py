"""Fused optimisers: one operation updates all parameters. Torch's kernels rely on what is made sure of here.

The kernels walk through parameter, gradient and state as they lie in memory. If one of them is in another memory
format, they mix up values without an error. SGD's kernel also fails if some momenta exist and others do not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dafw.errors import UserError

FUSED = ("momentum", "sgd", "adam", "adamw")
"""Names of the optimisers that have a fused form."""
DEVICES = ("cpu", "cuda")
"""Types of the devices on which the fused form is the default."""


def uses_fused(name: str, fused: bool | None, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether an optimiser takes its fused form.

    Args:
        name: of the optimiser.
        fused: what the configuration says. ``None`` means yes if the optimiser has the form, and if all parameters lie
            without gaps on devices of :data:`DEVICES`.
        parameters: all that it steps.

    Raises:
        UserError: if ``fused`` is true where it cannot be.
    """
    if fused is None:
        fits = all(_is_dense(one) and one.is_floating_point() and one.device.type in DEVICES for one in parameters)
        return name in FUSED and fits
    if fused and name not in FUSED:
        raise UserError(f"the optimizer {name} has no fused form: leave out model.fused, or take {' or '.join(FUSED)}")
    if fused and not all(map(_is_dense, parameters)):
        raise UserError("model.fused needs parameters without gaps in memory: leave it out")
    return fused


def keep_form(optimizer: Optimizer) -> None:
    """Makes an optimiser keep its own form, fused or not, when it loads a state; makes a fused one safe.

    In mixed precision a fused optimiser would divide the gradients by their scale itself. They could not be clipped
    before. So it says that it does not, and gets gradients that are divided already.
    """
    optimizer.register_load_state_dict_pre_hook(_with_own_form)
    if is_fused(optimizer):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        optimizer.register_load_state_dict_post_hook(_align_state)
        optimizer.register_step_pre_hook(_align_step)


def is_fused(optimizer: Optimizer) -> bool:
    """Whether the optimiser is in its fused form."""
    return any(group.get("fused") for group in optimizer.param_groups)


def _with_own_form(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state to load, with the form of the optimiser and not that of the one that was saved."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=False)
    groups = [{**saved, **({"fused": own["fused"]} if "fused" in own else {})} for saved, own in pairs]
    return {**state, "param_groups": groups} if len(groups) == len(state["param_groups"]) else state


def _align_state(optimizer: Optimizer) -> None:
    """Brings a loaded state into the memory formats of the parameters."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = _aligned(value, parameter)


def _align_step(optimizer: Optimizer, *_: Any) -> None:
    """Brings the gradients into the memory formats of their parameters, and starts missing momenta at 0.

    A momentum that starts at 0 is the gradient after its first step, as it is in the plain form.
    """
    for group in optimizer.param_groups:
        starts = bool(group.get("momentum"))
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise UserError("the fused optimizer takes no sparse gradients: give model.fused false")
            if gradient.stride() != parameter.stride():
                parameter.grad = _aligned(gradient, parameter)
            if starts and (state := optimizer.state[parameter]).get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def _aligned(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` in the memory format of ``parameter``; itself if it has it, whatever the stride of a single element."""
    steps = zip(value.shape, value.stride(), parameter.stride(), strict=True)
    if all(own == wanted for size, own, wanted in steps if size > 1):
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_dense(parameter: Tensor) -> bool:
    """Whether the values of a parameter lie in memory without gaps."""
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()
