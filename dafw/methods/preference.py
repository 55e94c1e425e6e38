"""The weights that ParetoDA's programme gives several objectives, and their diagnostics."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dafw.nn.distributed import mean_over_ranks
from dafw.optim.pareto import GradientRows, Mode, choose_weights

if TYPE_CHECKING:
    from dafw.methods.base import Method

Combination = Literal["pareto", "uniform", "source"]
"""How three objectives are weighed: by the programme, all alike, or the first alone."""
FIXED = {"uniform": (1.0, 1.0, 1.0), "source": (1.0, 0.0, 0.0)}
"""The weights of the combinations that need no programme."""


def preferred_weights(
    method: "Method",
    gradients: GradientRows,
    held_out: Tensor,
    names: Sequence[str],
    *,
    guided_above: float | None = None,
    mode: Mode = "paper",
) -> Tensor:
    """Solves the programme of :mod:`dafw.optim.pareto` in a training step, and diagnoses what it found.

    Args:
        method: whose step it is.
        gradients: of the objectives and, last, of the held-out loss, averaged over the ranks.
        held_out: that loss, minus a mutual information.
        names: of the objectives.
        guided_above: the guided programme is solved while the held-out loss is more than this above -log K; ``None``:
            never.
        mode: see :func:`~dafw.optim.pareto.choose_weights`.

    Returns:
        A weight for each objective, like the gradients' matrix and the same on every rank.
    """
    products = gradients.products()
    (numbers,) = mean_over_ranks([torch.cat([products.flatten(), held_out.detach().to(products).view(1)])])
    products, value = numbers[:-1].view_as(products), numbers[-1]
    least = math.inf if guided_above is None else guided_above
    guided = value + math.log(method.num_classes) > least
    chosen = choose_weights(products, guided=guided, mode=mode)
    weights = chosen.weights.to(products)
    if method.logs_this_step:
        method.diagnose("held_out_loss", value)
        method.diagnose("guided", guided.float())
        method.diagnose("infeasible", 1 - chosen.feasible.float())
        norms = products.diagonal().clamp_min(0.0).sqrt()
        for weight, norm, name in zip(weights, norms, names, strict=False):
            method.diagnose(f"weight_{name}", weight)
            method.diagnose(f"gradient_norm_{name}", norm)
    return weights
