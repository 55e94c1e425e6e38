import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images, network
from torch import nn

from dafw.errors import UserError
from dafw.nn.network import Network

USER_MODULE = """
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, width=5, in_channels=3):
        super().__init__()
        self.conv, self.norm, self.width = nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), width
        self.norm.eval()

    def forward(self, x):
        assert not self.training or self.sees_training
        x = x + torch.rand(())
        return self.norm(self.conv(x)).mean((2, 3))

    sees_training = False


class Vectors(nn.Module):
    num_features = 4

    def __init__(self):
        super().__init__()
        self.seen = None
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        self.seen = x
        return self.layer(x)

    def make_head(self, num_classes):
        return nn.Sequential(nn.ReLU(), nn.Linear(4, num_classes))


class Named(nn.Module):
    def __init__(self, name, owner):
        super().__init__()
        self.num_features = name + owner


class Maps(nn.Module):
    num_features = 3

    def forward(self, x):
        return x


class Picky(nn.Module):
    def forward(self, x):
        return x.flatten(1) @ torch.zeros(12, 2)


def function():
    return nn.Identity()
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "user_nets_for_tests.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "user_nets_for_tests"
    sys.modules.pop("user_nets_for_tests", None)


def test_timm_model() -> None:
    net = network(5, backbone="tf_efficientnet_lite0", backbone_args={"drop_path_rate": 0.1})
    outputs = net.eval()(images(2, 64))
    assert net.num_features == 1280
    assert outputs.features.shape == (2, 1280)
    assert outputs.logits.shape == (2, 5)
    assert isinstance(net.head, nn.Linear)
    assert net.mean == net.std == (0.5, 0.5, 0.5)


def test_timm_model_brings_its_mean_and_std() -> None:
    assert network(backbone="resnet10t").mean == pytest.approx((0.485, 0.456, 0.406))
    grey = network(backbone="resnet10t", in_channels=1)
    assert grey.mean == pytest.approx((0.449,))
    assert grey(images(2, 64, 1)).features.shape == (2, 512)
    assert network(backbone="resnet10t", mean=[0.5]).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("name", "width"), [("mobilenetv3_small_050", 1024), ("resnet10t.c3_in1k", 512)])
def test_timm_width_is_that_of_the_last_layer_before_the_classifier(name: str, width: int) -> None:
    net = network(3, backbone=name).eval()
    assert net.num_features == width
    assert net(images(1, 32)).features.shape == (1, width)


def test_timm_model_of_a_fixed_size_is_built_for_input_size() -> None:
    options: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"depth": 1}}
    net = network(3, input_size=32, **options)
    assert net(images(2, 32)).features.shape == (2, 192)


def test_timm_model_without_pooling_is_refused_when_it_runs() -> None:
    net = network(3, backbone="resnet10t", backbone_args={"global_pool": ""})
    with pytest.raises(UserError, match=r"resnet10t returns \(2, 512, 2, 2\)"):
        net(images(2, 64))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("mnist_nett", "mnist_net"), ("resnet50d_", "resnet50d"), ("no_package_of_this_name.Net", "")],
)
def test_unknown_backbone_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f'unknown backbone "{name}".*{nearest}'):
        Network(name)


def test_timm_complaints_become_user_errors() -> None:
    with pytest.raises(UserError, match=r"resnet10t\.nope"):
        Network("resnet10t.nope")
    with pytest.raises(UserError, match=r"resnet10t .*no_such_option"):
        Network("resnet10t", backbone_args={"no_such_option": 1})


@pytest.mark.parametrize("error", [ImportError("no timm"), RuntimeError("operator torchvision::nms does not exist")])
def test_timm_that_cannot_be_imported(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "timm":
                raise error

    for module in [name for name in sys.modules if name == "timm" or name.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    Network("mnist_net")
    with pytest.raises(UserError, match=r"resnet18 needs timm.*(no timm|nms).*mnist_net"):
        Network("resnet18")


def test_own_networks_import_neither_timm_nor_lightning() -> None:
    code = (
        "import sys; from dafw.nn.network import Network; Network('svhn_net');"
        "assert not {'timm', 'pytorch_lightning', 'lightning'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_backbone_args_reach_the_constructor_and_are_checked() -> None:
    net = network(backbone="svhn_net", backbone_args={"dropout": 0.3})
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    with pytest.raises(UserError, match=r"mnist_net cannot be built.*drop_out"):
        Network(backbone_args={"drop_out": 0.3})


def test_user_module_is_measured_without_a_trace(user: str) -> None:
    torch.manual_seed(3)
    module = __import__(user).Plain(7)
    after_construction = torch.get_rng_state()
    torch.manual_seed(3)
    net = Network(f"{user}.Plain", backbone_args={"width": 7}, input_size=9)
    assert net.num_features == 7
    assert torch.equal(torch.get_rng_state(), after_construction)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), net.backbone.state_dict().values(), strict=True)
    )
    assert [name for name, part in net.backbone.named_modules() if not part.training] == ["norm"]


def test_user_module_of_vectors(user: str) -> None:
    net = network(3, backbone=f"{user}.Vectors", mean=[0.1], std=[0.3])
    x = torch.rand(5, 6)
    outputs = net(x)
    assert net.backbone.seen is x, "inputs that are no images are not normalised"
    assert outputs.features.shape == (5, 4)
    assert outputs.logits.shape == (5, 3)
    assert isinstance(net.head, nn.Sequential), "the module's own label head"
    assert net.double()(x).logits.dtype == torch.float64
    narrow = network(3, backbone=f"{user}.Vectors", bottleneck=2)
    assert isinstance(narrow.head, nn.Linear)
    assert narrow(x).features.shape == (5, 2)


def test_a_user_module_may_have_any_arguments_and_lie_in_a_running_script(
    user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Network(f"{user}.Named", backbone_args={"name": 3, "owner": 4}).num_features == 7
    monkeypatch.setattr(sys.modules["__main__"], "Mine", nn.Flatten, raising=False)
    assert Network("__main__.Mine", input_size=2).num_features == 12


def test_user_modules_that_cannot_be_used(user: str) -> None:
    for path, message in [
        (f"{user}.Nothing", "no class Nothing"),
        (f"{user}.function", r"other than an nn\.Module"),
        (f"{user}.missing.Net", "cannot be imported"),
        (f"{user}.Picky", "num_features.*input_size"),
    ]:
        with pytest.raises(UserError, match=message):
            Network(path)
    assert Network(f"{user}.Picky", input_size=2).num_features == 2
    with pytest.raises(UserError, match=r"\(4, 3, 28, 28\), not \(N, d\)"):
        network(backbone=f"{user}.Maps")(images())
