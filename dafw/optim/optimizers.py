"""The optimisers that a method can be trained with: timm's, without those that need second derivatives."""

from functools import lru_cache
from typing import Any

import torch

from dafw.errors import UserError, choose
from dafw.optim.fused import FUSED, keep_form, uses_fused
from dafw.optim.joined import JoinedOptimizers

PLAIN = {"momentum": False, "sgd": True}
"""timm's names of torch's SGD, and whether it is with Nesterov's momentum. timm takes a second to import."""


@lru_cache
def usable_optimizers() -> tuple[str, ...]:
    """Names of timm's optimisers that step on first derivatives alone, in alphabetical order."""
    from timm.optim import get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

    names = sorted(map(str, list_optimizers()))
    return tuple(name for name in names if not get_optimizer_info(name).second_order)


def choose_optimizer(name: str) -> str:
    """Returns ``name`` if a method can be trained with this optimiser.

    Raises:
        UserError: if timm does not know it, or if it needs second derivatives, which no training step computes.
    """
    if name in PLAIN:
        return name
    from timm.optim import list_optimizers  # type: ignore[attr-defined]

    if name not in usable_optimizers() and name in map(str, list_optimizers()):
        raise UserError(
            f"the optimizer {name} needs second derivatives, which no training step computes: take adamw or momentum"
        )
    return choose("optimizer", name, usable_optimizers())


def make_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """The optimiser that timm makes.

    Args:
        name: of the optimiser, see :func:`choose_optimizer`.
        groups: of parameters. One with a key ``optimizer`` is moved by the optimiser of that name. The result then is a
            :class:`~dafw.optim.joined.JoinedOptimizers`, whose groups are in the order of their optimisers' first.
        lr: learning rate of a group that has none.
        momentum: momentum of SGD, or beta1 where the optimiser calls it so.
        weight_decay: weight decay of all parameters.
        fused: whether it is the fused form, see :func:`~dafw.optim.fused.uses_fused`.

    Raises:
        UserError: if ``fused`` is true where it cannot be.
        ValueError, AssertionError: if the optimiser cannot be made.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        own = {key: value for key, value in group.items() if key != "optimizer"}
        by_name.setdefault(group.get("optimizer", name), []).append(own)
    if len(by_name) > 1:
        rates: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "fused": fused}
        parts = {one: make_optimizer(one, own, **rates) for one, own in by_name.items()}
        return JoinedOptimizers(list(parts.values()), (parts.get(name) or next(iter(parts.values()))).defaults)
    ((name, groups),) = by_name.items()
    parameters = [parameter for group in groups for parameter in group["params"]]
    options: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    in_one = uses_fused(name, fused, parameters)
    if name in FUSED:
        options["fused"] = in_one
    if name in PLAIN:
        made: torch.optim.Optimizer = torch.optim.SGD(groups, nesterov=PLAIN[name], **options)
    else:
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

        made = create_optimizer_v2(groups, opt=name, filter_bias_and_bn=False, **options)
    if name in FUSED:
        keep_form(made)
    return made


def own_momentum(name: str, momentum: float, beta2: float) -> dict[str, Any]:
    """Options of a parameter group that set its momentum, whatever the optimiser calls it.

    Args:
        name: of the group's optimiser.
        momentum: of SGD, or beta1.
        beta2: decay of the mean square of the gradients, where the optimiser has two of these numbers.
    """
    if name in PLAIN:
        return {"momentum": momentum}
    from timm.optim import get_optimizer_info  # type: ignore[attr-defined]

    info = get_optimizer_info(name)
    if info.has_betas:
        return {"betas": (momentum, beta2)} if info.num_betas == 2 else {}
    return {"momentum": momentum} if info.has_momentum else {}
