"""The small fully connected network behind critics, bottlenecks and heads."""

from collections.abc import Sequence

from torch import nn

from dafw.nn.norm import DomainBatchNorm


def mlp(
    in_features: int, hidden: Sequence[int], out_features: int, *, norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    """Linear-[BatchNorm]-ReLU-[Dropout] for each hidden width, then one Linear.

    Args:
        in_features: width d of the input, (N, d).
        hidden: widths of the hidden layers; none gives a single Linear.
        out_features: width of the output, (N, out_features), without an activation.
        norm: put batch normalisation before each ReLU. Its statistics are those of the joint batch, over all ranks: a
            critic normalised one domain at a time could not see the shift of the mean that it is there to find.
        dropout: share of the hidden units to drop; 0 adds no layer.

    Returns:
        The layers in a row, so that state-dict keys are their positions: ``0.weight``, ``1.weight``, ...
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(in_features, width))
        if norm:
            layers.append(DomainBatchNorm(width))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))
