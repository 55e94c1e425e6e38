"""Backbones for rows of features: fully connected layers, or none."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dafw.errors import UserError, choose

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}


class IdentityFeatures(nn.Module):
    """The rows themselves: (N, d) -> (N, d).

    Args:
        in_features: width d of a row. :class:`datamodules.features.FeatureDomains` gives it if it is left out.

    Raises:
        UserError: if the width is not given.
    """

    def __init__(self, in_features: int | None = None) -> None:
        super().__init__()
        self.in_features = given_width("identity", in_features)
        self.num_features = self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Features of rows.

        Raises:
            UserError: for inputs of another shape.
        """
        check_width("identity", x, self.in_features)
        return x


class FeatureMLP(nn.Module):
    """Linear-[BatchNorm]-activation-[Dropout] for each width: rows (N, in_features) -> features (N, widths[-1]).

    Args:
        in_features: width of a row. :class:`datamodules.features.FeatureDomains` gives it if it is left out.
        widths: of the layers; a number is the width of a single one.
        activation: ``relu``, ``sigmoid``, ``tanh``, ``gelu`` or ``leaky_relu``.
        dropout: share of the outputs of each layer to drop in training.
        norm: batch normalisation before each activation.

    Raises:
        UserError: if the width is not given, there is no layer, or the activation is unknown.
    """

    def __init__(
        self,
        in_features: int | None = None,
        widths: Sequence[int] | int = (256, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_features = given_width("mlp", in_features)
        widths = [widths] if isinstance(widths, int) else widths
        named = {"widths": widths, "in_features": [self.in_features]}
        for key, values in named.items():
            if not values or any(not isinstance(one, int) or one < 1 for one in values):
                raise UserError(f"backbone_args.{key} of mlp must be whole numbers of at least 1, not {values}")
        if not 0 <= dropout < 1:
            raise UserError(f"backbone_args.dropout of mlp must be at least 0 and below 1, not {dropout}")
        self.num_features = widths[-1]
        act = ACTIVATIONS[choose("activation", activation, ACTIVATIONS)]
        layers: list[nn.Module] = []
        for before, after in zip((self.in_features, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), act()]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of rows.

        Raises:
            UserError: for inputs of another shape.
        """
        check_width("mlp", x, self.in_features)
        features: Tensor = self.layers(x)
        return features


FEATURE_NETS: dict[str, Any] = {"identity": IdentityFeatures, "mlp": FeatureMLP}
"""Backbones for rows of features, by name."""


def given_width(name: str, in_features: int | None) -> int:
    """The width of a row.

    Raises:
        UserError: if it is not given.
    """
    if in_features is None:
        raise UserError(
            f"the backbone {name} needs the number of features of a row: give model.network.backbone_args.in_features"
        )
    return in_features


def check_width(name: str, x: Tensor, in_features: int) -> None:
    """Compares a batch with the width that a backbone is built for.

    Raises:
        UserError: naming both.
    """
    if x.ndim != 2 or x.shape[1] != in_features:
        shape = "x".join(map(str, x.shape[1:]))
        raise UserError(
            f"the backbone {name} is built for rows of {in_features} features and got {shape}: set "
            "model.network.backbone_args.in_features, or take another backbone"
        )
