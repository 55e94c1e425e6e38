"""The base of networks of any kind: padding, modes, parameter groups, and what a subclass must define."""

import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.network import Network
from dafw.problems import MaskOutputs, NetworkBase
from dafw.recording import build, describe


class Pixels(NetworkBase):
    """A convolution with batch norm and a pixelwise head."""

    def __init__(self, width: int = 4, **base: Any) -> None:
        body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        super().__init__(body, width, **base)
        self.neck = nn.Conv2d(width, width, 1)

    def make_head(self, num_classes: int) -> nn.Module:
        return nn.Conv2d(self.num_features, num_classes, 1)

    def forward(self, x: Any, sizes: Tensor | None = None) -> MaskOutputs:
        features = self.neck(self.encode(x, sizes))
        return MaskOutputs(features, self.label_head()(features), sizes=sizes)


def pixels(**base: Any) -> Pixels:
    torch.manual_seed(0)
    network = Pixels(**base)
    network.set_classes(3)
    return network


def test_a_network_of_another_kind_needs_no_dummy() -> None:
    network = pixels(mean=[0.25])
    outputs = network(torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8))
    assert outputs.logits.shape == (2, 3, 6, 8)
    assert outputs.vectors().shape == (2, 4)
    again = build(describe(network))
    again.set_classes(3)
    again.load_state_dict(network.state_dict())
    assert again.mean == (0.25, 0.25, 0.25)


def test_padding_is_the_mean_colour_so_that_a_convolution_cannot_tell_it_from_the_border() -> None:
    network = pixels(mean=[0.3, 0.5, 0.6]).eval()
    small = torch.randint(0, 256, (1, 3, 5, 4), dtype=torch.uint8)
    padded = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    padded[..., :5, :4] = small
    sizes = torch.tensor([[5, 4]])
    assert network.normalise(padded, sizes)[..., 5:, :].abs().sum() == 0
    alone, among = network(small), network(padded, sizes)
    torch.testing.assert_close(among.logits[..., :5, :4], alone.logits)
    torch.testing.assert_close(among.vectors(), alone.vectors())


def test_what_is_no_single_tensor_is_refused_in_a_sentence() -> None:
    network, image = pixels(), torch.rand(3, 6, 6)
    classifier = Network()
    classifier.set_classes(3)
    for one in (network, classifier):
        with pytest.raises(UserError, match=r"takes a batch as one tensor \(N, C, H, W\) and got a list: torch.stack"):
            one([image, image])
    batch = torch.rand(2, 3, 28, 28)
    with pytest.raises(UserError, match=r"images of one size and got padded ones: set data\.size, or give a data\.aug"):
        classifier(batch, torch.tensor([[28, 28], [20, 28]]))
    assert torch.equal(classifier(batch, None).logits, classifier(batch).logits)


def test_a_mapping_of_inputs_passes_through() -> None:
    tokens = {"ids": torch.arange(6).view(2, 3), "weights": torch.rand(2, 3, dtype=torch.float64)}
    found = pixels().normalise(tokens)
    assert found["ids"] is tokens["ids"]
    assert found["weights"].dtype == torch.float32


def test_every_part_that_is_not_the_backbone_learns_at_the_full_rate() -> None:
    network = pixels(backbone_lr=0.1)
    backbone, rest = network.parameter_groups(0.5)
    assert (backbone["lr"], rest["lr"]) == (pytest.approx(0.05), 0.5)
    head = [*network.label_head().parameters(), *network.neck.parameters()]
    assert {id(parameter) for parameter in rest["params"]} == {id(parameter) for parameter in head}
    with pytest.raises(RuntimeError, match="set_classes"):
        Pixels().parameter_groups(0.1)


def test_a_frozen_backbone_stays_in_evaluation_mode_and_learns_nothing() -> None:
    network = pixels(frozen=True).train()
    assert [name for name, part in network.named_modules() if part.training] == ["", "head", "neck"]
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    network(torch.rand(2, 3, 6, 6)).logits.sum().backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.backbone.state_dict().items())


def test_a_subclass_that_lacks_a_part_says_which() -> None:
    class Bare(NetworkBase):
        pass

    with pytest.raises(NotImplementedError, match=r"Bare must define make_head"):
        Bare(nn.Identity(), 3).set_classes(2)
    with pytest.raises(NotImplementedError, match=r"Bare must define forward"):
        Bare(nn.Identity(), 3)(torch.zeros(1, 3, 2, 2))


class Asleep(nn.Module):
    """Arrives in evaluation mode, as a whole or in one part alone."""

    num_features = 4

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        if whole:
            self.eval()
        else:
            self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x)).mean((2, 3))
        return found


def test_a_backbone_that_arrives_in_evaluation_mode_trains() -> None:
    path = f"{Asleep.__module__}.Asleep"
    network = Network(path)
    assert all(part.training for part in network.modules())
    network.set_classes(3)
    network(torch.rand(4, 3, 6, 6))
    assert isinstance(network.backbone, Asleep)
    assert network.backbone.norm.num_batches_tracked == 1, "batch statistics are taken and tracked"
    body = timm.create_model("resnet10t", num_classes=0).eval()
    assert all(part.training for part in Wrapped(body).modules())
    assert not any(part.training for part in Network(path, frozen=True).backbone.modules())


class Wrapped(Pixels):
    def __init__(self, body: nn.Module) -> None:
        NetworkBase.__init__(self, body, 512)


def test_a_part_that_is_left_in_evaluation_mode_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        network = Network(f"{Asleep.__module__}.Asleep", backbone_args={"whole": False})
    assert [name for name, part in network.named_modules() if not part.training] == ["backbone.norm"]
    assert "parts of the backbone arrived in evaluation mode and stay in it: norm\n" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Network(frozen=True)
    assert caplog.text == ""
