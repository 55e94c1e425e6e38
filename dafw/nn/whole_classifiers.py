"""A module that is a whole classifier: its last linear layer is taken out, and what remains is a backbone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dafw.errors import UserError

Pass = Callable[[nn.Module], object]


def last_layer(module: nn.Module, pass_images: Pass) -> str | None:
    """The name of the linear layer whose output a module returns as its own; ``None`` if there is none.

    Args:
        module: images to class scores, or to features.
        pass_images: passes images through the module and returns what it returns.
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        found = pass_images(module)
    finally:
        for hook in hooks:
            hook.remove()
    return next((name for name, output in outputs.items() if output is found), None)


def without_last_layer(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Takes a layer out of a module, in place, so that the module returns what the layer got.

    Args:
        module: the module.
        name: of the layer within it.

    Returns:
        The weights of the layer, by their names within it.
    """
    layer = module.get_submodule(name)
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, nn.Identity())
    return {key: value.detach().clone() for key, value in layer.state_dict().items()}


def refuse_unknown_scale(name: str, module: nn.Module, mean: object, std: object) -> None:
    """Refuses a whole classifier if nothing says how its images were normalised when it was trained.

    Args:
        name: of the backbone.
        module: the backbone. It may have timm's ``pretrained_cfg``, a mapping with ``mean`` and ``std``.
        mean: as it was given to the network.
        std: as it was given to the network.

    Raises:
        UserError: naming what to give.
    """
    config = getattr(module, "pretrained_cfg", None) or {}
    for key, given in (("mean", mean), ("std", std)):
        if given is None and not config.get(key):
            raise UserError(
                f"nothing says with which {key} the images of {name} were normalised when it was trained: give"
                f" model.network.{key}, of images in [0, 1]"
            )


def other_scale(module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """How the normalisation differs from that of timm's configuration; empty if it does not, or nothing is known."""
    config = getattr(module, "pretrained_cfg", None) or {}
    said = []
    for key, used in (("mean", mean), ("std", std)):
        known = tuple(config.get(key) or used)
        if len(known) == len(used) and not torch.allclose(torch.tensor(known), torch.tensor(used), atol=1e-4):
            said.append(f"{key} {list(used)} where its weights had {list(known)}")
    return " and ".join(said)
