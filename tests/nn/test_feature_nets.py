import pytest
import torch
from torch import nn

from dafw.errors import UserError
from dafw.nn.network import Network


def test_mlp_has_the_layers_that_are_asked_for() -> None:
    arguments = {"in_features": 6, "widths": [5, 4], "activation": "sigmoid", "dropout": 0.5, "norm": True}
    network = Network("mlp", backbone_args=arguments)
    block = [nn.Linear, nn.BatchNorm1d, nn.Sigmoid, nn.Dropout]
    assert [type(layer) for layer in network.backbone.layers] == [*block, *block]
    network.set_classes(3)
    outputs = network(torch.randn(7, 6))
    assert (outputs.features.shape, outputs.logits.shape) == ((7, 4), (7, 3))


def test_one_number_is_the_width_of_one_layer() -> None:
    assert Network("mlp", backbone_args={"in_features": 6, "widths": 5}).num_features == 5


def test_identity_has_no_layer_and_changes_no_value() -> None:
    network = Network("identity", backbone_args={"in_features": 6})
    network.set_classes(3)
    rows = 100 * torch.randn(7, 6)
    assert torch.equal(network(rows).features, rows)
    assert len(network.parameter_groups(0.1)) == 1


@pytest.mark.parametrize(
    ("backbone", "arguments", "says"),
    [
        ("mlp", {}, "the backbone mlp needs the number of features of a row"),
        ("identity", {}, "the backbone identity needs the number of features of a row"),
        ("mlp", {"in_features": 6, "activation": "sigmoids"}, 'did you mean "sigmoid"'),
        ("mlp", {"in_features": 6, "widths": []}, "widths of mlp must be whole numbers"),
        ("mlp", {"in_features": 6, "widths": 0}, "widths of mlp must be whole numbers"),
        ("mlp", {"in_features": 6, "widths": [4.5]}, "widths of mlp must be whole numbers"),
        ("mlp", {"in_features": 6, "dropout": 1.0}, "dropout of mlp"),
        ("mlp", {"in_features": 6, "depth": 2}, "cannot be built"),
        ("mpl", {"in_features": 6}, 'did you mean "mlp"'),
    ],
)
def test_refusals(backbone: str, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Network(backbone, backbone_args=arguments)


@pytest.mark.parametrize("backbone", ["mlp", "identity"])
def test_inputs_of_another_width_are_one_sentence(backbone: str) -> None:
    network = Network(backbone, backbone_args={"in_features": 6})
    network.set_classes(3)
    with pytest.raises(UserError, match="rows of 6 features and got 5"):
        network(torch.randn(7, 5))
