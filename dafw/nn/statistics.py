"""The batch normalisations of a network: which there are, and their running statistics estimated anew."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dafw.errors import UserError
from dafw.nn.norm import DomainBatchNorm


def batch_norms(module: nn.Module, needed_by: str = "") -> list[DomainBatchNorm]:
    """The batch normalisations of a converted network, see :func:`~dafw.nn.norm.convert_norm`.

    Args:
        module: the network.
        needed_by: the method or the key that cannot do without; empty: there may be none.

    Raises:
        UserError: if there is none and a method needs them. It names the normalisations that there are.
    """
    found = [layer for layer in module.modules() if isinstance(layer, DomainBatchNorm)]
    if needed_by and not found:
        others = [(name, type(one).__name__) for name, one in module.named_modules() if "Norm" in type(one).__name__]
        has = f"{others[0][1]} {others[0][0]} and {len(others) - 1} more of other kinds" if others else "none at all"
        raise UserError(
            f"{needed_by} needs a network with batch normalisation, and model.network has none: it has {has}"
        )
    return found


def never_estimated(module: nn.Module) -> bool:
    """Whether a network has batch normalisations whose running statistics are all as they start: mean 0, variance 1."""
    means = [layer.running_mean for layer in batch_norms(module) if layer.running_mean is not None]
    variances = [layer.running_var for layer in batch_norms(module) if layer.running_var is not None]
    return bool(means) and not any(mean.any() for mean in means) and all((var == 1).all() for var in variances)


@contextmanager
def averaged_statistics(module: nn.Module) -> Iterator[int]:
    """Within, running statistics are estimated anew, as the mean over the passes in training mode.

    The statistics of ``frozen`` layers, and of a branch that no pass reaches, stay as they were.

    Args:
        module: a converted network, see :func:`~dafw.nn.norm.convert_norm`.

    Yields:
        The number of layers that are estimated anew.
    """
    found = [layer for layer in batch_norms(module) if layer.mode != "frozen"]
    layers = {layer: layer.momentum for layer in found if layer.running_mean is not None}
    branches = [
        (mean, var, batches, (mean.clone(), var.clone(), batches.clone()))
        for layer in layers
        for source in ((False, True) if layer.mode == "domain_specific" else (False,))
        for _, _, mean, var, batches in [layer._branch(source)]
        if mean is not None and var is not None and batches is not None
    ]
    for layer in layers:
        layer.momentum = None
    for mean, var, batches, _ in branches:
        mean.zero_(), var.fill_(1.0), batches.zero_()
    yield len(layers)
    for layer, momentum in layers.items():
        layer.momentum = momentum
    for *tensors, kept in branches:
        if not tensors[-1].any():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
