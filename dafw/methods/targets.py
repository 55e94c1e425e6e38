"""What a method makes, in training, of all the targets' training samples at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dafw.methods.base import Method
from dafw.nn.distributed import gather_unequal, sum_over_ranks
from dafw.nn.modes import evaluation_mode
from dafw.problems import Outputs


def target_outputs(method: Method) -> Outputs:
    """Outputs of every training sample of the targets, see :func:`training_outputs`."""
    data: Any = method.data
    first = len(data.labelled)
    return training_outputs(method, first, first + len(data.training_targets))


@torch.no_grad()
def training_outputs(method: Method, first: int, last: int) -> Outputs:
    """Outputs of every training sample of some domains, as the network in training gives them in evaluation mode.

    No label is used, no sample is augmented or left out but what is held out, and no running statistic moves. The ranks
    share the forward, and each gets all of it. It takes a pass over the split: call it between steps.

    Args:
        method: in training, with a datamodule.
        first: of the domains in the datamodule's order, labelled ones before targets.
        last: the one after the last of them.

    Returns:
        features (n, d) and logits (n, K): domains in the datamodule's order, each one's samples in its own.
    """
    data: Any = method.data
    found = []
    with evaluation_mode(method.network):
        for position, domain in enumerate(data.train_domains[first:last], first):
            parts, labelled = [], position < len(data.labelled)
            for batch in data.evaluation_loader(domain):
                with method.trainer.precision_plugin.forward_context():
                    outputs = method.forward_rows(batch.to(method.device).x, len(batch) if labelled else 0)
                parts.append((batch.index.to(method.device), outputs.features, outputs.logits))
            columns = [torch.cat(column) for column in zip(*parts, strict=True)]
            columns = [gather_unequal(column) for column in columns]
            order = columns[0].argsort()
            found.append((columns[1][order], columns[2][order]))
    features, logits = (torch.cat(column) for column in zip(*found, strict=True))
    return Outputs(features, logits)


@torch.no_grad()
def sum_over_targets(
    method: Method, function: Callable[[Any], Tensor], shape: tuple[int, ...], network: nn.Module | None = None
) -> Tensor:
    """The sum of a function's values over all training samples of the targets, of which nothing else is kept.

    The network is in evaluation mode. No sample is augmented, and no label is used. The ranks share the forward, and
    each gets the sum, in float64. Call it between steps.

    Args:
        method: in training, with a datamodule.
        function: of the outputs of some rows; its value must be a sum over them.
        shape: of the function's value.
        network: the network to pass; the one in training if ``None``.
    """
    data: Any = method.data
    first = len(data.labelled)
    chosen = method.network if network is None else network
    total = torch.zeros(shape, dtype=torch.float64, device=method.device)
    with evaluation_mode(chosen):
        for domain in data.train_domains[first : first + len(data.training_targets)]:
            for batch in data.evaluation_loader(domain):
                moved = batch.to(method.device)
                with method.trainer.precision_plugin.forward_context():
                    outputs = method.forward_rows(moved.x, 0, chosen, moved.sizes)
                total += function(outputs)
    return sum_over_ranks(total)
