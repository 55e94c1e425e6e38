import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images, network
from torch import Tensor

from dafw.errors import UserError
from dafw.methods import DANN, ERM, SourceOnly
from dafw.nn.digits import DIGIT_NETS
from dafw.nn.layout import BatchLayout
from dafw.nn.mixstyle import MixStyle
from dafw.nn.network import Network
from dafw.nn.norm import convert_norm
from dafw.recording import build, describe
from dafw.testing.steps import HostCalls, Operations, StepWatch
from dafw.testing.toys import ToyData, toy_trainer

N, C = 6, 4


def maps(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, 5, 5, dtype=torch.float64, generator=generator)
    return x * torch.arange(1, N + 1).view(N, 1, 1, 1) + torch.arange(N).view(N, 1, 1, 1)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt()


def weights_and_partners(layer: MixStyle, x: Tensor, y: Tensor) -> tuple[Tensor, list[int]]:
    """For each row the weight of its own style and its partner, recovered from the result."""
    (m, s), (mean, std) = statistics(x), statistics(y)
    own, partners = [], []
    for i in range(len(x)):
        fits = []
        for j in range(len(x)):
            if j != i:
                weight = ((mean[i] - m[j]) * (m[i] - m[j])).sum() / (m[i] - m[j]).square().sum()
                there = weight * m[i] + (1 - weight) * m[j], weight * s[i] + (1 - weight) * s[j]
                fits.append((float((mean[i] - there[0]).abs().max() + (std[i] - there[1]).abs().max()), j, weight))
        error, j, weight = min(fits)
        assert error < 1e-4  # of the eps below the roots
        own.append(weight)
        partners.append(i if weight > 1 - 1e-6 else j)
    return torch.stack(own), partners


def test_the_style_of_a_row_lies_between_its_own_and_its_partners() -> None:
    torch.manual_seed(0)
    layer, x = MixStyle(alpha=1.0, p=1.0), maps()
    y = layer(x)
    own, partners = weights_and_partners(layer, x, y)
    assert sorted(partners) == list(range(N)), "a permutation"
    assert ((own > -1e-6) & (own < 1 + 1e-6)).all()
    assert own.unique().numel() >= 3, "each row draws its own weight"
    (m, s), (mean, std) = statistics(x), statistics(y)
    contents = [(a - b[..., None, None]) / c[..., None, None] for a, b, c in ((x, m, s), (y, mean, std))]
    torch.testing.assert_close(*contents, rtol=1e-5, atol=1e-5)


def test_no_gradient_through_the_statistics() -> None:
    torch.manual_seed(1)
    x, weight = maps().requires_grad_(True), maps(5)
    y = MixStyle(alpha=1.0, p=1.0)(x)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    factor = statistics(y)[1] / statistics(x)[1]  # how the deviation was changed, which is all that the gradient sees
    torch.testing.assert_close(gradient, weight * factor[..., None, None].detach(), rtol=1e-5, atol=1e-5)


def test_evaluation_and_p_0_are_the_identity() -> None:
    x = maps()
    assert MixStyle(p=1.0).eval()(x) is x
    state = torch.get_rng_state()
    assert MixStyle(p=0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_p_is_the_share_of_batches_and_the_others_pass_bit_for_bit() -> None:
    torch.manual_seed(2)
    layer, x = MixStyle(alpha=1.0, p=0.3), maps()
    unchanged = [bool(torch.equal(layer(x), x)) for _ in range(400)]
    assert 0.6 < sum(unchanged) / 400 < 0.8
    mixed = [layer(x) for _ in range(20)]
    assert all(torch.equal(y, x) or (y != x).flatten(1).any(1).sum() >= 2 for y in mixed)


@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_weights_are_of_the_beta_distribution(alpha: float) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    x[1] = x[1] * 3 + 5
    layer = MixStyle(alpha, 1.0)
    drawn = []
    for _ in range(2000):
        scale, shift = layer.change(x)
        means = statistics(x * scale + shift)[0][:, 0]
        own = (means - statistics(x)[0][:, 0].flip(0)) / (statistics(x)[0][:, 0] - statistics(x)[0][:, 0].flip(0))
        drawn += [own] if not torch.allclose(own, torch.ones(2, dtype=torch.float64)) else []
    variance = torch.stack(drawn).var()
    assert len(drawn) > 800, "half of the permutations of two rows are the identity"
    assert float(variance) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cross_domain_pairs_are_of_different_domains() -> None:
    torch.manual_seed(4)
    layer = MixStyle(alpha=1.0, p=1.0, pairs="cross_domain")
    domain = torch.tensor([0, 0, 0, 1, 1, 2])
    layer.layout.domain = domain
    seen: set[tuple[int, int]] = set()
    for _ in range(100):
        partners = layer.partners(N, torch.device("cpu"))
        assert (domain[partners] != domain).all()
        seen |= set(enumerate(partners.tolist()))
    assert seen == {(i, j) for i in range(N) for j in range(N) if domain[i] != domain[j]}
    x = maps()
    _, partners_found = weights_and_partners(layer, x, layer(x))
    assert all(domain[i] != domain[j] for i, j in enumerate(partners_found) if i != j)
    layer.layout.domain = torch.zeros(N, dtype=torch.int64)
    assert layer.partners(N, torch.device("cpu")).tolist() == list(range(N))
    torch.testing.assert_close(layer(x), x)


def test_cross_domain_needs_the_domains() -> None:
    layer = MixStyle(p=1.0, pairs="cross_domain")
    for known in (None, torch.arange(3), torch.arange(8)):
        layer.layout.domain = known
        with pytest.raises(UserError, match=r"each of the 6 rows of a pass.*use random pairs"):
            layer(maps())
    layer.layout.num_source = N
    assert layer(maps()).isfinite().all(), "the source rows, the first of the batch"
    assert layer.layout.domain_of(N).tolist() == list(range(N))  # type: ignore[union-attr]
    layer.layout = BatchLayout()
    assert layer.eval()(maps()).shape == maps().shape


@pytest.mark.parametrize("pairs", ["random", "cross_domain"])
def test_nothing_is_read_from_the_device(pairs: Any) -> None:
    layer = MixStyle(pairs=pairs)
    layer.layout.domain = torch.arange(N) % 2
    x, reads = maps().requires_grad_(True), list[str]()
    with Operations() as operations, HostCalls(reads):
        layer(x).sum().backward()
    assert operations.host_reads == reads == []
    assert operations.counts["_sample_dirichlet"] == 1


def test_half_precision_stays_and_statistics_are_of_32_bits() -> None:
    torch.manual_seed(6)
    x = (maps() + 100).float()
    layer = MixStyle(alpha=1.0, p=1.0)
    state = torch.get_rng_state()
    expected = layer(x.bfloat16().float())
    torch.set_rng_state(state)
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())


@pytest.mark.parametrize(
    ("name", "side", "stages"),
    [("resnet18", 64, [1, 2]), ("resnet26d", 64, [3]), *((name, 40, [1, 2]) for name in DIGIT_NETS)],
)
def test_in_a_network_it_acts_in_training_alone_and_no_name_changes(name: str, side: int, stages: list[int]) -> None:
    options: dict[str, Any] = {"backbone": name, "input_size": None if "resnet" in name else side}
    plain = network(3, **options)
    net = network(3, **options, mixstyle=stages, mixstyle_p=1.0, mixstyle_alpha=1.0)
    assert [(m.p, m.alpha) for m in net.modules() if isinstance(m, MixStyle)] == [(1.0, 1.0)] * len(stages)
    assert list(plain.state_dict()) == list(net.state_dict())
    x = images(4, side)
    torch.testing.assert_close(net.eval()(x).features, plain.eval()(x).features)
    assert not torch.allclose(net.train()(x).features, plain.train()(x).features)


def test_it_stands_behind_the_whole_stage() -> None:
    net = Network("small_bn_net", mixstyle=[1, 3])
    kinds = [type(layer).__name__ for layer in net.backbone.layers.children()]  # type: ignore[union-attr]
    stage = ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert kinds == [*stage, "MixStyle", *stage, *stage, "MixStyle"]
    resnet = Network("resnet18", mixstyle=[2], ibn="b")
    assert [key for key, _ in resnet.backbone.layer2.named_children()] == ["0", "1", "mixstyle"]  # type: ignore[union-attr]


def test_what_it_cannot_follow_is_named() -> None:
    with pytest.raises(UserError, match=r"stages of a ResNet .* or of a digit network, not VGG's"):
        Network("vgg11", mixstyle=[1])
    for stages in ([0], [4], [1, 1]):
        with pytest.raises(UserError, match="different stages from 1 to 3 of small_bn_net"):
            Network("small_bn_net", mixstyle=stages)
    with pytest.raises(UserError, match="mixstyle_alpha must be positive"):
        Network("small_bn_net", mixstyle=[1], mixstyle_alpha=0.0)
    with pytest.raises(UserError, match=r"mixstyle_p must be from 0 to 1, not 1\.5"):
        Network("small_bn_net", mixstyle=[1], mixstyle_p=1.5)
    with pytest.raises(UserError, match='unknown mixstyle_pairs "crossdomain": did you mean "cross_domain"'):
        Network("small_bn_net", mixstyle=[1], mixstyle_pairs="crossdomain")  # type: ignore[arg-type]


def test_all_layers_and_copies_read_the_rows_of_the_method() -> None:
    net = network(3, backbone="small_bn_net", mixstyle=[1, 2], mixstyle_pairs="cross_domain")
    layout: BatchLayout = convert_norm(net, "joint")
    twin = copy.deepcopy(net)
    layout.domain = torch.tensor([0, 1, 0, 1])
    for part in (net, twin):
        assert all(m.layout is layout for m in part.modules() if isinstance(m, MixStyle))
        assert part(images()).features.isfinite().all()
    again = build(describe(net))
    assert [m.pairs for m in again.modules() if isinstance(m, MixStyle)] == ["cross_domain"] * 2


@pytest.mark.parametrize("method", [SourceOnly, DANN, ERM])
def test_training_with_domains_from_the_batch(method: Any, tmp_path: Path) -> None:
    options = {"input_size": 6, "mixstyle": [1, 2], "mixstyle_p": 1.0, "mixstyle_pairs": "cross_domain"}
    model = method(Network("mnist_cnn", **options), num_classes=3)
    data = ToyData(["a", "b"], "c", batch_size=8, steps_per_epoch=2, seed=0)
    watch = StepWatch()
    toy_trainer(tmp_path, epochs=1, callbacks=[watch]).fit(model, data)
    assert watch.host_reads == []
    assert watch.passes == [1, 1]
    domain = model.layout.domain
    assert domain is not None
    assert set(domain.tolist()) >= {0, 1}
