"""The small fully connected network of critics, bottlenecks and heads."""

from collections.abc import Sequence

from torch import Tensor, nn

from dafw.nn.norm import DomainBatchNorm


def mlp(
    in_features: int, hidden: Sequence[int], out_features: int, *, norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    """Linear-[BatchNorm]-ReLU-[Dropout] for each hidden width, then one Linear.

    Args:
        in_features: width d of the input, (N, d).
        hidden: widths of the hidden layers; none gives a single Linear.
        out_features: width of the output, (N, out_features), without an activation.
        norm: put batch normalisation before each ReLU. Its statistics are those of the joint batch, over all ranks. A
            critic must see the shift of the mean between domains; normalising each domain separately would hide it.
        dropout: share of the hidden units to drop; 0 adds no layer.

    Returns:
        A sequence of the layers; state-dict keys are their positions: ``0.weight``, ``1.weight``, ...
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


def start_linear(module: nn.Module, init: tuple[float, float] | None) -> None:
    """Gives every linear layer of a module new initial weights.

    Args:
        module: changed in place.
        init: standard deviation of the weights, around 0, and value of the biases; ``None`` changes nothing.
    """
    if init is None:
        return
    std, bias = init
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


class Residual(nn.Module):
    """x + W_2 relu(W_1 x + b_1) + b_2: a small correction of rows (N, width), close to the identity at first.

    Args:
        width: width of a row.
        hidden: width of the hidden layer.
        std: standard deviation of the initial weights, around 0.
        bias: initial value of both biases.
    """

    def __init__(self, width: int, hidden: int, *, std: float = 0.005, bias: float = 0.1) -> None:
        super().__init__()
        self.change = mlp(width, [hidden], width)
        start_linear(self.change, (std, bias))

    def forward(self, x: Tensor) -> Tensor:
        """Corrected rows, (N, width)."""
        corrected: Tensor = x + self.change(x)
        return corrected
