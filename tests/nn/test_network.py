import copy
from typing import Any

import pytest
import torch
from networks import images, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dafw.errors import UserError
from dafw.nn.detector import Detector
from dafw.nn.digits import DIGIT_NETS
from dafw.nn.network import Network
from dafw.nn.norm import NORM_MODES, NormMode, convert_norm
from dafw.nn.segmenter import TinySegmenter
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import Outputs
from dafw.recording import build, describe


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_outputs_are_sliced_as_views() -> None:
    outputs = Outputs(torch.rand(6, 3), torch.rand(6, 2))
    part = outputs[2:5]
    assert len(outputs) == 6
    assert len(part) == 3
    assert torch.equal(part.features, outputs.features[2:5])
    assert torch.equal(part.logits, outputs.logits[2:5])
    assert part.features.data_ptr() == outputs.features[2].data_ptr()
    assert part.logits.data_ptr() == outputs.logits[2].data_ptr()


@pytest.mark.parametrize(
    ("backbone", "side", "width", "parameters"),
    [
        ("mnist_net", 28, 768, 768 * 100 + 100 + 100 * 100 + 100 + 100 * 7 + 7),
        ("gtsrb_net", 40, 1024, 1025 * 512 + 513 * 7),
    ],
)
def test_papers_networks_have_the_papers_head_on_the_features(
    backbone: str, side: int, width: int, parameters: int
) -> None:
    net = network(7, backbone=backbone)
    outputs = net(images(2, side))
    assert net.num_features == width
    assert outputs.features.shape == (2, width)
    assert outputs.logits.shape == (2, 7)
    assert net.head is not None
    assert sum(p.numel() for p in net.head.parameters()) == parameters
    assert torch.equal(net.head(outputs.features), outputs.logits)


def test_normalisation_is_one_operation_and_right() -> None:
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.4, 0.3]
    net = network(mean=mean, std=std, channels_last=False)
    x = images()
    expected = (x.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for given in (x, x.float() / 255, x.double() / 255):
        with Operations() as operations:
            y = net.normalise(given)
        assert operations.names == (["_to_copy"] if given.dtype == torch.float64 else []) + ["addcmul"]
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


def test_computes_in_the_parameters_dtype() -> None:
    x = images()
    net = network().double()
    for given in (x, x.float() / 255, x.double() / 255):
        outputs = net(given)
        assert outputs.features.dtype == outputs.logits.dtype == torch.float64
    exact = (x.double() / 255 - 0.5) / 0.5
    torch.testing.assert_close(net.normalise(x), exact, rtol=1e-7, atol=1e-7)
    assert network().to(torch.bfloat16)(x).logits.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert network()(x).logits.dtype == torch.bfloat16


def test_normalisation_is_differentiable_and_no_part_of_the_state() -> None:
    net = network(std=[0.25])
    x = torch.rand(2, 3, 28, 28, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.normalise(x).sum(), x)
    assert torch.allclose(gradient, torch.full_like(gradient, 4.0))
    assert all(key.startswith(("backbone.", "head.")) for key in net.state_dict())


def test_mean_and_std_have_one_value_or_one_per_channel() -> None:
    assert network().mean == (0.5, 0.5, 0.5)
    assert network(in_channels=1).std == (0.5,)
    assert network(mean=[0.2]).mean == (0.2, 0.2, 0.2)
    with pytest.raises(UserError, match="mean has 2 values for images of 3 channels"):
        Network(mean=[0.1, 0.2])
    with pytest.raises(UserError, match="std must be positive"):
        Network(std=[0.0])


def test_wrong_images_are_named() -> None:
    net = network()
    with pytest.raises(UserError, match="3 channels and got 1"):
        net(images(channels=1))
    with pytest.raises(UserError, match=r"3x28x28.*3x32x32"):
        net(images(side=32))
    with pytest.raises(UserError, match=r"torch\.int64"):
        net(images().long())
    assert network(input_size=32)(images(side=32)).features.shape == (4, 1200)


def test_inputs_that_are_no_images_keep_integer_types() -> None:
    tokens = torch.arange(6).view(2, 3)
    assert network().normalise(tokens) is tokens
    assert network().normalise(tokens.to(torch.uint8)).dtype == torch.float32


def test_head_must_be_set() -> None:
    net = Network()
    assert net.head is None
    assert net.num_features == 768
    with pytest.raises(RuntimeError, match="set_classes"):
        net(images())
    with pytest.raises(RuntimeError, match="set_classes"):
        net.parameter_groups(0.1)


def test_set_classes_keeps_a_head_that_fits() -> None:
    net = network(10).double()
    head = net.head
    net.set_classes(10)
    assert net.head is head
    net.set_classes(4)
    assert net(images()).logits.shape == (4, 4)
    assert net(images()).logits.dtype == torch.float64


def test_bottleneck() -> None:
    net = network(6, backbone="small_bn_net", bottleneck=16)
    assert net.bottleneck is not None
    assert [type(m) for m in net.bottleneck.children()] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    outputs = net(images())
    assert net.num_features == 16
    assert outputs.features.shape == (4, 16)
    assert outputs.logits.shape == (4, 6)
    assert isinstance(net.head, nn.Linear)
    assert (outputs.features >= 0).all()


def test_a_hidden_layer_of_the_head_and_dropout() -> None:
    net = network(6, backbone="small_bn_net", bottleneck=16, head_width=12, dropout=0.5)
    assert net.bottleneck is not None
    assert net.head is not None
    assert [type(m) for m in net.bottleneck.children()] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(m) for m in net.head.children()] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert net.head(torch.rand(2, 16)).shape == (2, 6)
    assert [type(m) for m in net.make_head(3).children()] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    own = network(6, backbone="mnist_net", head_width=12)
    assert [m.out_features for m in own.head.children() if isinstance(m, nn.Linear)] == [12, 6]  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"below 1, not 1\.0"):
        network(6, dropout=1.0)


def test_dropout_of_the_backbones_features() -> None:
    """Without a bottleneck and a hidden layer of the head: the head sees the features that are returned."""
    x, plain = images(8, 28), network(6, backbone="small_bn_net").eval()
    net = network(6, backbone="small_bn_net", dropout=0.25).eval()
    whole = net(x)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert torch.equal(whole.features, plain(x).features)
    assert net.head is not None
    assert net.feature_dropout is not None
    net.feature_dropout.train()
    outputs = net(x)
    kept = outputs.features != 0
    torch.testing.assert_close(outputs.features[kept], whole.features[kept] / 0.75)
    share = kept.sum() / (whole.features != 0).sum()
    assert 0.65 < float(share) < 0.85
    assert torch.equal(outputs.logits, net.head(outputs.features))
    assert torch.equal(net.train().extract(x) == 0, net.extract(x) == 0) is False, "each pass draws its own mask"
    for options in ({"bottleneck": 16}, {"head_width": 16}):
        assert network(6, dropout=0.25, **options).feature_dropout is None


def test_bottleneck_without_relu_and_a_weight_normalised_head() -> None:
    net = network(6, backbone="small_bn_net", bottleneck=16, bottleneck_relu=False, head="weight_norm")
    outputs = net(images())
    assert (outputs.features < 0).any()
    assert isinstance(net.head, nn.Linear)
    lengths, directions = net.head.parametrizations.weight.original0, net.head.parametrizations.weight.original1
    assert lengths.shape == (6, 1)
    expected = outputs.features @ (lengths * directions / directions.norm(dim=1, keepdim=True)).T + net.head.bias
    torch.testing.assert_close(outputs.logits, expected)
    again, twin = build(describe(net)), copy.deepcopy(net)
    again.set_classes(6)
    again.load_state_dict(net.state_dict())
    for other in (again, twin):
        assert torch.equal(other.eval()(images()[:2] * 0).logits, net.eval()(images()[:2] * 0).logits)
    with pytest.raises(UserError, match='unknown head "weight_nrm": did you mean "weight_norm"'):
        network(head="weight_nrm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is one layer"):
        network(head="weight_norm", head_width=4)


@pytest.mark.parametrize("bottleneck", [None, 8])
def test_parameter_groups_hold_every_parameter_once(bottleneck: int | None) -> None:
    net = network(bottleneck=bottleneck, backbone_lr=0.1)
    backbone, new = net.parameter_groups(0.5)
    assert (backbone["lr"], new["lr"]) == (pytest.approx(0.05), 0.5)
    assert [id(p) for p in backbone["params"]] == [id(p) for p in net.backbone.parameters()]
    assert sorted(map(id, backbone["params"] + new["params"])) == sorted(map(id, net.parameters()))
    torch.optim.SGD(net.parameter_groups(0.5))


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    net = network()
    net.backbone.requires_grad_(False)
    (only,) = net.parameter_groups(1.0)
    assert net.head is not None
    assert len(only["params"]) == len(list(net.head.parameters()))
    assert len(network(backbone="torch.nn.Flatten", input_size=2).parameter_groups(1.0)) == 1
    with pytest.raises(UserError, match="backbone_lr"):
        Network(backbone_lr=-1.0)


def test_the_network_decides_its_memory_format_and_not_the_batch() -> None:
    x = images(2, 20)
    for last in (False, True):
        net = network(backbone="small_bn_net", channels_last=last)
        for batch in (x, x.contiguous(memory_format=torch.channels_last)):
            y = net.normalise(batch)
            assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            assert y.equal(net.normalise(x))


def test_channels_last_changes_the_memory_and_not_the_result() -> None:
    plain, last = (network(backbone="small_bn_net", channels_last=last) for last in (False, True))
    x = images()
    with Operations() as operations:
        y = last.normalise(x)
    assert operations.names == ["clone", "addcmul"]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    convolutions = [m.weight for m in last.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    torch.testing.assert_close(plain(x).logits, last(x).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        *((name, None, True) for name in DIGIT_NETS),
        ("resnet10t", None, True),
        ("tf_efficientnet_lite0", None, True),
        ("mobilenetv3_small_050", None, True),
        ("vit_tiny_patch16_224", 32, False),
        ("convnext_atto", None, False),
        ("torch.nn.Flatten", 4, False),
    ],
)
def test_convolutions_of_this_project_and_of_timm_are_in_channels_last_memory_by_default(
    backbone: str, size: int | None, expected: bool
) -> None:
    """Those with layer normalisation gain nothing, and a user's module may not take it."""
    assert network(backbone=backbone, input_size=size).channels_last is expected
    assert not network(backbone=backbone, input_size=size, channels_last=False).channels_last


@pytest.mark.parametrize("owner", [TinySegmenter, Detector])
def test_networks_for_masks_and_boxes_are_in_channels_last_memory_too(owner: type[NetworkBase]) -> None:
    found, x = [], images(2, 32)
    for last in (None, False):
        torch.manual_seed(0)
        net: Any = owner(channels_last=last)
        net.set_classes(3)
        normal = net.normalise(x, torch.tensor([[32, 32], [20, 24]]))
        assert normal.is_contiguous(memory_format=torch.channels_last) is net.channels_last is (last is None)
        found.append(net(x).features)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", NORM_MODES)
def test_every_norm_mode_trains(mode: NormMode) -> None:
    net = network(backbone="small_bn_net", bottleneck=8)
    convert_norm(net, mode).num_source = 4
    net(images(8)).logits.square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert missing == []


def test_compile_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_nothing(call: Any, *_: Any, **__: Any) -> Any:
        compiled.append(call)
        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    net = network(compile=True)
    assert compiled == [net.backbone._call_impl]
    assert net.state_dict().keys() == network().state_dict().keys()
    assert net(images()).logits.shape == (4, 10)


def test_recorded_and_copied() -> None:
    net = network(backbone="gtsrb_net", backbone_lr=0.5, mean=[0.3])
    again = build(describe(net))
    assert isinstance(again, Network)
    assert again.backbone_name == "gtsrb_net"
    assert again.mean == net.mean
    twin = copy.deepcopy(net)
    x = images(2, 40)
    assert torch.equal(twin(x).logits, net(x).logits)
    again.set_classes(10)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x).logits, net(x).logits)


def test_the_bottleneck_may_lack_its_normalisation_and_its_relu() -> None:
    def layers(**options: Any) -> list[str]:
        bottleneck = network(bottleneck=6, **options).bottleneck
        assert isinstance(bottleneck, nn.Sequential)
        return [type(layer).__name__ for layer in bottleneck]

    assert layers() == ["Linear", "BatchNorm1d", "ReLU"]
    assert layers(bottleneck_norm=False, dropout=0.5) == ["Linear", "ReLU", "Dropout"]
    assert layers(bottleneck_norm=False, bottleneck_relu=False) == ["Linear"]


def test_initial_weights_of_new_layers() -> None:
    torch.manual_seed(0)
    net = network(bottleneck=600, bottleneck_init=(0.005, 0.1), head_width=500, head_init=(0.01, 0.0))
    assert isinstance(net.bottleneck, nn.Sequential)
    for head in (net.head, net.make_head(7)):
        found = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]
        assert len(found) == 2
        assert float(found[0].weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert all(not layer.bias.any() for layer in found)
    assert float(net.bottleneck[0].weight.detach().std()) == pytest.approx(0.005, rel=0.05)
    assert net.bottleneck[0].bias.detach().eq(0.1).all()
    torch.manual_seed(1)
    plain = network(bottleneck=6)
    torch.manual_seed(1)
    again = network(bottleneck=6, bottleneck_init=None, head_init=None)
    assert all(map(torch.equal, plain.state_dict().values(), again.state_dict().values()))
    with pytest.raises(UserError, match="head_init is of the default head"):
        network(head="weight_norm", head_init=(0.01, 0.0))
