import pytest
import torch
from torch import nn

from dafw.errors import UserError
from dafw.nn.digits import (
    DIGIT_NETS,
    MNISTCNN,
    DigitNet,
    GTSRBNet,
    MNISTNet,
    SmallBNNet,
    SmallSENet,
    SVHNNet,
    side_after,
)

PAPER = {  # name: (side, features, convolutions (in, out, kernel), widths of the label head)
    "mnist_net": (28, 768, [(3, 32, 5), (32, 48, 5)], [768, 100, 100, 10]),
    "svhn_net": (32, 8192, [(3, 64, 5), (64, 64, 5), (64, 128, 5)], [8192, 3072, 2048, 10]),
    "gtsrb_net": (40, 1024, [(3, 96, 5), (96, 144, 3), (144, 256, 5)], [1024, 512, 10]),
}


@pytest.mark.parametrize("name", PAPER)
def test_layers_are_the_papers(name: str) -> None:
    side, features, convolutions, widths = PAPER[name]
    net = DIGIT_NETS[name]()
    found = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in net.modules() if isinstance(m, nn.Conv2d)]
    head = [m for m in net.make_head(10).modules() if isinstance(m, nn.Linear)]
    assert found == convolutions
    assert [head[0].in_features, *(m.out_features for m in head)] == widths
    assert net.num_features == features
    z = net(torch.rand(2, 3, side, side))
    assert z.shape == (2, features)
    assert z.min() == 0 < z.max(), "a ReLU is the last layer"


@pytest.mark.parametrize("name", DIGIT_NETS)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 36), (2, 48)])
def test_num_features_is_what_comes_out(name: str, channels: int, size: int) -> None:
    net = DIGIT_NETS[name](channels, size).eval()
    assert net(torch.rand(2, channels, size, size)).shape == (2, net.num_features)


@pytest.mark.parametrize("name", list(PAPER))
def test_relu_behind_pooling_equals_relu_before_it(name: str) -> None:
    torch.manual_seed(0)
    net = DIGIT_NETS[name]().double()
    order: list[nn.Module] = list(net.layers)
    for i, layer in enumerate(order[:-1]):
        if isinstance(layer, nn.MaxPool2d):
            order[i], order[i + 1] = nn.ReLU(), layer
    before = nn.Sequential(*order)
    x = torch.randn(2, 3, net.input_size, net.input_size, dtype=torch.float64)
    direction = torch.randn(2, net.num_features, dtype=torch.float64)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad((net(x) * direction).sum(), parameters)
    expected = torch.autograd.grad((before(x).flatten(1) * direction).sum(), parameters)
    assert torch.equal(net(x), before(x).flatten(1))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("name", DIGIT_NETS)
def test_smallest_size_works_and_the_next_smaller_is_refused(name: str) -> None:
    smallest = {"mnist_net": 16, "svhn_net": 1, "gtsrb_net": 32, "small_bn_net": 8, "small_se_net": 8}.get(name, 1)
    net = DIGIT_NETS[name](3, smallest).eval()
    assert net(torch.rand(2, 3, smallest, smallest)).shape == (2, net.num_features)
    with pytest.raises(UserError, match=rf"{name}.*{smallest - 1}x{smallest - 1}"):
        DIGIT_NETS[name](3, smallest - 1)


@pytest.mark.parametrize("net", [MNISTNet(), SVHNNet(), GTSRBNet(), SmallBNNet(), SmallSENet()])
def test_another_size_is_an_error_that_names_both(net: DigitNet) -> None:
    with pytest.raises(UserError, match=rf"{net.name}.*3x{net.input_size}x{net.input_size}.*3x30x31"):
        net(torch.rand(1, 3, 30, 31))
    with pytest.raises(UserError, match=rf"got 1x{net.input_size}x{net.input_size}"):
        net(torch.rand(1, 1, net.input_size, net.input_size))
    with pytest.raises(UserError, match="got 7"):
        net(torch.rand(1, 7))


def test_small_bn_net_has_128_features_at_both_sizes() -> None:
    for side in (28, 32):
        net = SmallBNNet(3, side).eval()
        assert net(torch.rand(2, 3, side, side)).shape == (2, net.num_features) == (2, 128)


def multiplications(net: nn.Module, x: torch.Tensor) -> int:
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        total += weight[0].numel() * output.numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    net(x)
    for handle in handles:
        handle.remove()
    return total


def test_small_bn_net_is_at_most_twice_as_dear_as_mnist_net() -> None:
    x = torch.rand(1, 3, 28, 28)
    small, mnist = multiplications(SmallBNNet().eval(), x), multiplications(MNISTNet(), x)
    assert 1.2 < small / mnist < 1.4
    assert 5.0e6 < small < 5.2e6


def test_small_bn_net_normalises_every_layer() -> None:
    net = SmallBNNet()
    kinds = [type(m) for m in (*net.layers, *net.projection)]
    behind = [kinds[i + 1] for i, kind in enumerate(kinds) if kind in (nn.Conv2d, nn.Linear)]
    assert behind == [nn.BatchNorm2d] * 3 + [nn.BatchNorm1d]


def test_dropout_is_in_the_head_and_off_by_default() -> None:
    def dropouts(net: nn.Module) -> list[float]:
        return [m.p for m in net.modules() if isinstance(m, nn.Dropout)]

    assert not dropouts(SVHNNet().make_head(10))
    assert not dropouts(SVHNNet())
    net = SVHNNet(dropout=0.5)
    assert dropouts(net) == []
    assert dropouts(net.make_head(10)) == [0.5, 0.5]


def test_side_after_follows_kernel_stride_and_padding() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 1, 5, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    for side in range(3, 30):
        assert side_after(layers, side) == layers(torch.zeros(1, 1, side, side)).shape[-1]
    assert side_after(layers, 2) == 0


def test_domainbeds_network() -> None:
    torch.manual_seed(0)
    net = MNISTCNN(2)
    layers = list(net.layers)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.ReLU, nn.GroupNorm] * 4
    found = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0]) for m in layers[::3]]
    assert found == [(2, 64, 3, 1, 1), (64, 128, 3, 2, 1), (128, 128, 3, 1, 1), (128, 128, 3, 1, 1)]
    assert [(m.num_groups, m.num_channels) for m in layers[2::3]] == [(8, 64), (8, 128), (8, 128), (8, 128)]
    x = torch.rand(3, 2, 28, 28)
    assert net.layers(x).shape == (3, 128, 14, 14)
    torch.testing.assert_close(net(x), net.layers(x).mean((2, 3)))
    torch.testing.assert_close(net(x[:1]), net(x)[:1])
    head = net.make_head(10)
    assert [(m.in_features, m.out_features) for m in head.children()] == [(128, 10)]
