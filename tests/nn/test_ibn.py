import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_vectors import golden
from networks import images, network
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.ibn import IBN, InstanceNormAct, convert_ibn, split_state
from dafw.nn.network import Network
from dafw.nn.norm import NORM_MODES, DomainBatchNorm, NormMode, convert_norm
from dafw.nn.weights import without_weights
from dafw.recording import build, describe

RESNETS = ["resnet18", "resnet50", "seresnet50", "resnext50_32x4d", "resnet26d"]


def small_resnet(**options: Any) -> Any:
    """timm's ResNet-18 with 8 to 64 channels and statistics that are not those of a new one."""
    torch.manual_seed(2)
    model = timm.create_model("resnet18", num_classes=0, channels=(8, 16, 32, 64), zero_init_last=False, **options)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    values.uniform_(0.5, 1.5)
    return model


def layer(channels: int, ratio: float = 0.5) -> IBN:
    torch.manual_seed(1)
    made = IBN(channels, ratio).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 1.5)
    return made


def maps(rows: int = 5, channels: int = 6) -> Tensor:
    return torch.randn(rows, channels, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 + 1


def test_the_authors_layer() -> None:
    arrays = {key: torch.from_numpy(values) for key, values in golden("ibn/ibn.npz").items()}
    state = {key.replace("__", "."): values for key, values in arrays.items() if "__" in key}
    made = IBN(arrays["x"].shape[1])
    first = {key: values for key, values in made.state_dict().items() if "running" in key or "tracked" in key}
    made.load_state_dict({**state, **first})
    torch.testing.assert_close(made(arrays["x"]), arrays["y"], rtol=1e-4, atol=1e-6)
    for key in first:
        torch.testing.assert_close(made.state_dict()[key], state[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "ratio", "first"), [(7, 0.5, 3), (6, 0.3, 1), (5, 0.9, 4)])
def test_any_number_of_channels_and_any_ratio(channels: int, ratio: float, first: int, training: bool) -> None:
    made, x = layer(channels, ratio).train(training), maps(channels=channels)
    instance, batch = made.IN, made.BN
    assert instance is not None
    assert batch is not None
    assert (instance.num_features, batch.num_features) == (first, channels - first)
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
    shape = (1, -1, 1, 1)
    expected = (x - mean) / (var + 1e-5).sqrt()
    expected = expected[:, :first] * instance.weight.view(shape) + instance.bias.view(shape)
    y = made(x)
    torch.testing.assert_close(y[:, :first], expected)
    again = nn.BatchNorm2d(channels - first).double().train(training)
    again.load_state_dict({**again.state_dict(), "weight": batch.weight.detach(), "bias": batch.bias.detach()})
    torch.testing.assert_close(y[:, first:], again(x[:, first:]))


def test_ratio_0_is_batch_and_1_instance_normalisation() -> None:
    x = maps()
    batch, instance = layer(6, 0.0), layer(6, 1.0)
    assert batch.IN is None
    assert instance.BN is None
    one, other = nn.BatchNorm2d(6).double(), nn.InstanceNorm2d(6, affine=True).double()
    for plain, made in ((one, batch.BN), (other, instance.IN)):
        assert made is not None
        plain.load_state_dict({**plain.state_dict(), **dict(made.named_parameters())})
    assert torch.equal(batch(x), one(x))
    assert torch.equal(instance(x), other(x))
    for ratio in (-0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            IBN(4, ratio)


def test_only_the_batch_part_sees_the_batch() -> None:
    made, x = layer(6), maps()
    alone, together = made(x[:2]), made(x)[:2]
    torch.testing.assert_close(alone[:, :3], together[:, :3], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(alone[:, 3:], together[:, 3:])


def test_maps_of_one_value_are_refused() -> None:
    with pytest.raises(UserError, match=r"1x1.*larger images"):
        IBN(4)(torch.rand(2, 4, 1, 1))
    with pytest.raises(UserError, match="1x1"):
        InstanceNormAct(4, nn.ReLU())(torch.rand(2, 4, 1, 1))
    assert IBN(4, 0.0)(torch.rand(2, 4, 1, 1)).shape == (2, 4, 1, 1)


@pytest.mark.parametrize("mode", NORM_MODES)
def test_the_batch_part_follows_the_norm_modes(mode: NormMode) -> None:
    holder = nn.Sequential(layer(6))
    plain = copy.deepcopy(holder)
    convert_norm(holder, mode).num_source = 2
    assert isinstance(holder[0].BN, DomainBatchNorm)
    assert isinstance(holder[0].IN, nn.InstanceNorm2d)
    x = maps()
    y = holder(x)
    if mode == "frozen":
        expected = plain.eval()(x)
    elif mode == "joint":
        expected = plain(x)
    else:
        expected = torch.cat([plain(x[:2]), plain(x[2:])])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = nn.Sequential(nn.Conv2d(3, 6, 3), IBN(6), InstanceNormAct(6, nn.ReLU()))(torch.rand(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize("name", RESNETS)
def test_what_is_replaced_and_what_stays(name: str, form: Any) -> None:
    with torch.device("meta"):
        plain, made = timm.create_model(name, num_classes=0), timm.create_model(name, num_classes=0)
    before = {key: values.shape for key, values in plain.state_dict().items()}
    convert_ibn(made.to_empty(device="cpu"), form)
    after = {key: values.shape for key, values in made.state_dict().items()}
    stages = [made.layer1, made.layer2, made.layer3, made.layer4]
    last = "act2" if name == "resnet18" else "act3"
    if form == "a":
        assert [[isinstance(b.bn1, IBN) for b in stage] for stage in stages] == [
            [i < 3] * len(stage) for i, stage in enumerate(stages)
        ]
        gone = {key for key in before if key.startswith(("layer1", "layer2", "layer3")) and ".bn1." in key}
        for block, old in zip(made.layer3, plain.layer3, strict=True):
            width = old.bn1.num_features
            assert (block.bn1.IN.num_features, block.bn1.BN.num_features) == (width // 2, width - width // 2)
    else:
        ends = {
            f"layer{s}.{i}": isinstance(getattr(b, last), InstanceNormAct)
            for s, stage in enumerate(stages, 1)
            for i, b in enumerate(stage)
        }
        assert [key for key, found in ends.items() if found] == [f"layer{s}.{len(stages[s - 1]) - 1}" for s in (1, 2)]
        assert isinstance(made.bn1, nn.InstanceNorm2d)
        gone = {f"bn1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
    new = set(after) - set(before)
    assert set(before) - set(after) == gone
    assert all(".IN." in key or ".BN." in key for key in new)
    assert all(after[key] == before[key] for key in set(before) & set(after))


@pytest.mark.parametrize("form", ["a", "b"])
def test_values_within_the_network(form: Any) -> None:
    """In evaluation each replaced layer does to its input what its parts say, and nothing else has changed."""
    plain = small_resnet().double().eval()
    made = copy.deepcopy(plain)
    convert_ibn(made, form)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)

    def instance(x: Tensor, norm: nn.BatchNorm2d | None) -> Tensor:
        y = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        return y if norm is None else y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)

    def first_half(norm: nn.BatchNorm2d, args: tuple[Tensor], y: Tensor) -> Tensor:
        half = norm.num_features // 2
        return torch.cat([instance(args[0], norm)[:, :half], y[:, half:]], 1)

    if form == "a":
        for stage in (plain.layer1, plain.layer2, plain.layer3):
            for block in stage:
                block.bn1.register_forward_hook(first_half)
    else:
        plain.bn1.register_forward_hook(lambda norm, args, _: instance(args[0], norm))
        for stage in (plain.layer1, plain.layer2):
            stage[-1].act2.register_forward_pre_hook(lambda _, args: instance(args[0], None))
    torch.testing.assert_close(made(x), plain(x), rtol=1e-9, atol=1e-9)


def test_a_frozen_network_stays_frozen_and_in_its_mode() -> None:
    model = small_resnet().eval().requires_grad_(False)
    convert_ibn(model, "a")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("form", ["a", "b"])
def test_plain_weights_are_split(form: Any, tmp_path: Path) -> None:
    plain = small_resnet()
    expected = copy.deepcopy(plain)
    convert_ibn(expected, form)
    torch.save({"state_dict": {f"module.{key}": value for key, value in plain.state_dict().items()}}, tmp_path / "w.pt")
    options = {"channels": [8, 16, 32, 64], "zero_init_last": True}
    net = network(4, backbone="resnet18", ibn=form, weights=str(tmp_path / "w.pt"), backbone_args=options)
    found = net.backbone.state_dict()
    assert found.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(found[key], value), key
    if form == "a":
        old, new = plain.layer2[1].bn1, net.backbone.layer2[1].bn1  # type: ignore[index, union-attr]
        for key in ("weight", "bias"):
            whole = torch.cat([getattr(new.IN, key), getattr(new.BN, key)])
            assert torch.equal(whole, getattr(old, key))
        assert torch.equal(new.BN.running_var, old.running_var[8:])
        assert new.BN.num_batches_tracked.shape == ()


@pytest.mark.parametrize("form", ["a", "b"])
def test_the_authors_names_are_understood(form: Any, tmp_path: Path) -> None:
    trained = small_resnet()
    convert_ibn(trained, form)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.uniform_()
    state = {key.replace(".act2.IN.", ".IN."): value for key, value in trained.state_dict().items()}
    torch.save({**state, "fc.weight": torch.zeros(2, 64), "fc.bias": torch.zeros(2)}, tmp_path / "w.pt")
    options = {"channels": [8, 16, 32, 64]}
    net = Network("resnet18", ibn=form, weights=str(tmp_path / "w.pt"), backbone_args=options)
    assert all(torch.equal(net.backbone.state_dict()[key], value) for key, value in trained.state_dict().items())
    if form == "b":
        del state["layer1.1.IN.weight"]
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError, match=r"1 missing, first layer1\.1\.act2\.IN\.weight"):
            Network("resnet18", ibn="b", weights=str(tmp_path / "w.pt"), backbone_args=options)


def test_weights_of_timms_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        torch.manual_seed(5 if pretrained else 0)
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    for form in ("a", "b"):
        net = Network("resnet18", ibn=form, weights="timm")  # type: ignore[arg-type]
        torch.manual_seed(5)
        expected = original("resnet18", num_classes=0)
        convert_ibn(expected, form)  # type: ignore[arg-type]
        assert all(torch.equal(net.backbone.state_dict()[key], value) for key, value in expected.state_dict().items())


def test_norms_start_as_the_authors_and_no_random_number_is_used() -> None:
    plain = network(3, backbone="resnet18")
    after = torch.get_rng_state()
    net = network(3, backbone="resnet18", ibn="a")
    assert torch.equal(torch.get_rng_state(), after)
    same = [key for key in plain.state_dict() if "conv" in key or "head" in key]
    assert same
    assert all(torch.equal(plain.state_dict()[key], net.state_dict()[key]) for key in same)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.InstanceNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    timms = network(3, backbone="resnet18", ibn="a", backbone_args={"zero_init_last": True})
    assert (timms.backbone.layer1[0].bn2.weight == 0).all()  # type: ignore[index, union-attr]


@pytest.mark.parametrize("form", ["a", "b"])
def test_the_network_is_made_again_without_its_weights(form: Any, tmp_path: Path) -> None:
    torch.save(small_resnet().state_dict(), tmp_path / "w.pt")
    options: dict[str, Any] = {"ibn": form, "backbone_args": {"channels": [8, 16, 32, 64]}}
    net = network(4, backbone="resnet18", weights=str(tmp_path / "w.pt"), **options)
    rows = convert_norm(net, "domain_specific")
    rows.num_source = 2
    net(images(4, 64)).logits.sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters())
    description = describe(net)
    (tmp_path / "w.pt").unlink()
    with without_weights():
        again = build(description)
    again.set_classes(4)
    convert_norm(again, "domain_specific")
    again.load_state_dict(net.state_dict())
    twin = copy.deepcopy(net)
    x = images(3, 64)
    rows.num_source = None
    for other in (again, twin):
        assert torch.equal(other.eval()(x).logits, net.eval()(x).logits)


@pytest.mark.parametrize("name", ["mnist_net", "vgg11", "skresnet18", "resnest14d", "resnetv2_50", "torch.nn.Flatten"])
def test_networks_without_such_blocks_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"resnet18 to resnet152.*{name} has none"):
        Network(name, ibn="a", input_size=28 if name == "torch.nn.Flatten" else None)


def test_other_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r'unknown ibn "c".*\(choices: a, b\)'):
        Network("resnet18", ibn="c")  # type: ignore[arg-type]
    for form in ("a", "b"):
        with pytest.raises(UserError, match=r"BatchNorm2d, and resnet18 normalises by GroupNorm"):
            Network("resnet18", ibn=form, backbone_args={"norm_layer": "groupnorm"})  # type: ignore[arg-type]


def test_a_state_that_fits_passes_unchanged() -> None:
    for form in ("a", "b"):
        model = small_resnet()
        convert_ibn(model, form)  # type: ignore[arg-type]
        state = model.state_dict()
        again = split_state(model, state)
        assert again.keys() == state.keys()
        assert all(again[key] is value for key, value in state.items())
