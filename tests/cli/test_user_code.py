"""A user's own method, datamodule and network lie beside the command and are named by class path."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import QUICK, TOY, call, one_run, refused

MINE = '''
from typing import Any
import torch
from dafw.data import ArrayImages, Domain
from dafw.methods import AdaptationMethod, Losses
from dafw.nn.network import Network
from dafw.testing.toys import toy_domain
from datamodules import DomainDataModule


class Closer(AdaptationMethod):
    """Features of the target near those of the source."""

    def __init__(self, network: Network, *, pull: float = 1.0, **base: Any) -> None:
        super().__init__(network, **base)
        if pull < 0:
            raise ValueError("pull must not be negative")
        self.pull = pull

    def adapt(self, source, target, joint) -> Losses:
        return {"pull": self.pull * (source.features.mean(0) - target.features.mean(0)).square().sum()}


class Shapes(DomainDataModule):
    """Two domains of shapes."""

    domain_names = ("left", "right")
    class_names = ("disc", "square", "cross")

    def __init__(self, source: str | list[str], target: str | list[str], *, size: int = 30, **base: Any) -> None:
        super().__init__(source, target, **base)
        self.size = size

    def load(self, name, split):
        return toy_domain(name, self.size, split)


class Flat(torch.nn.Module):
    """A linear layer."""

    num_features = 5

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.linear = scale, torch.nn.Linear(108, 5)

    def forward(self, x):
        return self.linear(x.flatten(1)) * self.scale
'''


@pytest.fixture
def fit(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The command, with a module that no other test imports."""
    module = f"mine_{request.node.name}"
    Path(f"{module}.py").write_text(MINE)
    data = (f"{module}.Shapes", "--data.source", "left", "--data.target", "right", "--data.batch_size", "8")
    rest = ("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--data.steps_per_epoch", "2")
    network = ("--model.network.backbone", f"{module}.Flat", "--model.network.backbone_args.scale", "2.0")
    return ("fit", "--model", f"{module}.Closer", "--data", *data, *network, *rest, "--run.plots", "false")


def test_own_classes(capsys: pytest.CaptureFixture[str], fit: tuple[str, ...]) -> None:
    done = call(capsys, *fit, "--data.size", "36", "--model.pull", "0.5")
    assert done.code == 0, done.err
    folder = one_run(Path("runs"))
    assert folder.name.startswith("Closer-left-right-s0-")
    result = json.loads((folder / "result.json").read_text())
    assert (result["method"], result["task"], result["num_target_test"]) == ("Closer", "left->right", 36)
    for command in ("test", "validate", "predict"):
        again = call(capsys, command, *fit[1:], "--data.size", "36", "--model.pull", "0.5")
        assert again.code == 0, again.err
    assert len(Path("predictions.csv").read_text().splitlines()) == 37


def test_own_mistakes(capsys: pytest.CaptureFixture[str], fit: tuple[str, ...]) -> None:
    module = fit[2].partition(".")[0]

    def refused(*arguments: str) -> str:
        done = call(capsys, *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        return done.err

    assert "pull must not be negative" in refused(*fit, "--model.pull", "-1")
    assert 'unknown key "model.pul": did you mean "pull"?' in refused(*fit, "--model.pul", "1")
    assert 'model.pull: expected float, got "much"' in refused(*fit, "--model.pull", "much")
    assert 'unknown key "data.siz": did you mean "size"?' in refused(*fit, "--data.siz", "1")
    assert f'{module} has no such class, did you mean "Closer"?' in refused("fit", "--model", f"{module}.Closr", *TOY)
    Path("broken_here.py").write_text("def (")
    assert "broken_here.Any cannot be imported: invalid syntax" in refused("fit", "--model", "broken_here.Any", *TOY)
    Path("lacking_here.py").write_text("import there_is_no_such_module")
    assert 'there is no module "there_is_no_such_module"' in refused("fit", "--model", "lacking_here.Any", *TOY)


UNREADABLE = '''
from typing import Any
from dafw.methods import SourceOnly
from dafw.testing.toys import ToyData
from dafw.nn.network import Network


class Untyped(SourceOnly):
    """The network has no type."""

    def __init__(self, network, *, width: int = 3, **base: Any) -> None:
        super().__init__(network, **base)


class AnyNetwork(SourceOnly):
    """The network may be anything."""

    def __init__(self, network: Any, **base: Any) -> None:
        self.width = network.num_features
        super().__init__(network, **base)


class Hidden(SourceOnly):
    """A default of its own for an argument of the base."""

    def __init__(self, network: Network, *, width: int = 3, **base: Any) -> None:
        super().__init__(network, **{"ema_decay": 0.9, **base})


class Shown(SourceOnly):
    """The same in words that the command line understands."""

    def __init__(self, network: Network, *, ema_decay: float | None = 0.9, **base: Any) -> None:
        super().__init__(network, ema_decay=ema_decay, **base)


class HiddenData(ToyData):
    """Data that hides the batch size."""

    def __init__(self, source: str | list[str], target: str | list[str], **base: Any) -> None:
        super().__init__(source, target, **{"count": 32, **base})
'''


def test_constructors_that_the_command_line_cannot_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("unreadable_here.py").write_text(UNREADABLE)

    def said(name: str, *arguments: str) -> str:
        return refused(capsys, "fit", "--model", f"unreadable_here.{name}", *QUICK, *arguments)

    untyped = "does not say what its argument network is: annotate it, network: Network, so that the command line can"
    for name in ("Untyped", "AnyNetwork"):
        assert said(name).startswith(f"{name}.__init__ {untyped}")
        Path("net.yaml").write_text("model: {init_args: {network: {class_path: Network}}}")
        assert said(name, "--config", "net.yaml").startswith(f"{name}.__init__ {untyped}")
    hidden = "hides the arguments of its base class from the command line: pass **base on by itself"
    for arguments in ([], ["--model.lr", "0.1"], ["--model.ema_decay", "0.5"]):
        assert said("Hidden", *arguments).startswith(f"Hidden.__init__ {hidden}")
    data = [word.replace("dafw.testing.toys.ToyData", "unreadable_here.HiddenData") for word in QUICK]
    assert refused(capsys, "fit", "--model", "DANN", *data).startswith(f"HiddenData.__init__ {hidden}")
    shown = call(capsys, "fit", "--model", "unreadable_here.Shown", *QUICK, "--model.lr", "0.1")
    assert shown.code == 0, shown.err
    config = (one_run(Path("runs")) / "config.yaml").read_text()
    assert "ema_decay: 0.9" in config


ANY_KIND = '''
from typing import Any
from dafw.methods import SourceOnly
from dafw.nn.network import Network
from dafw.problems import NetworkBase


class Narrow(Network):
    """A network of the user's own."""

    def __init__(self, width: int = 5) -> None:
        super().__init__("dafw.testing.toys.ToyNet", bottleneck=width)


class AnyKind(SourceOnly):
    """Takes a network of any kind."""

    def __init__(self, network: NetworkBase, **base: Any) -> None:
        super().__init__(network, **base)
'''


BODY = "backbone: dafw.testing.toys.ToyNet"


@pytest.mark.parametrize(
    ("arguments", "network"),
    [
        (["--model.network.backbone", "dafw.testing.toys.ToyNet", "--model.network.bottleneck", "5"], "{}"),
        ([], f"{{{BODY}, bottleneck: 5}}"),
        ([], f"{{class_path: Network, init_args: {{{BODY}, bottleneck: 5}}}}"),
        (["--model.network.bottleneck", "5"], f"{{{BODY}, bottleneck: 4}}"),
        ([], "{class_path: any_kind_here.Narrow}"),
        (["--model.network", "any_kind_here.Narrow"], "{}"),
        (["--model.network", "any_kind_here.Narrow", "--model.network.width", "5"], "{}"),
    ],
)
def test_a_network_without_a_class_is_the_usual_one(
    capsys: pytest.CaptureFixture[str], arguments: list[str], network: str
) -> None:
    """Wherever its arguments stand, and although the method takes networks of any kind."""
    Path("any_kind_here.py").write_text(ANY_KIND)
    given = "" if network == "{}" else f", init_args: {{network: {network}}}"
    Path("net.yaml").write_text(f"model: {{class_path: any_kind_here.AnyKind{given}}}")
    start = QUICK.index("--model.network.backbone")
    rest = (*QUICK[:start], *QUICK[start + 2 :])
    done = call(capsys, "fit", "--config", "net.yaml", *arguments, *rest)
    assert done.code == 0, done.err
    config = yaml.safe_load((one_run(Path("runs")) / "config.yaml").read_text())
    made = config["model"]["init_args"]["network"]
    own = made["class_path"] == "any_kind_here.Narrow"
    assert made["init_args"]["width" if own else "bottleneck"] == 5
    assert own == any("Narrow" in word for word in (*arguments, network))
    shutil.rmtree("runs")
    said = refused(capsys, "fit", "--config", "net.yaml", *arguments, *rest, "--model.network.widht", "3")
    assert said.startswith('unknown key "model.network.widht"')


LOOSE = '''
from dafw.nn.network import Network


class Loose(Network):
    """Arguments without a type."""

    def __init__(self, width, words=None, **network):
        assert words in (None, [1, "a"]), words
        super().__init__("dafw.testing.toys.ToyNet", bottleneck=width, **network)
'''


def test_arguments_of_a_network_need_no_type(capsys: pytest.CaptureFixture[str]) -> None:
    """Any value passes through. One that must be given is asked for, and not taken for null."""
    Path("loose_here.py").write_text(LOOSE)
    start = QUICK.index("--model.network.backbone")
    command = (
        "fit",
        "--model",
        "SourceOnly",
        *QUICK[:start],
        *QUICK[start + 2 :],
        "--model.network",
        "loose_here.Loose",
    )
    assert refused(capsys, *command) == "model.network.width must be given"
    assert refused(capsys, *command, "--model.network.words", "[1, a]") == "model.network.width must be given"
    given = (
        "--model.network.init_args.width",
        "6",
        "--model.network.words",
        "[1, a]",
        "--model.network.dropout",
        "0.5",
    )
    done = call(capsys, *command, *given)
    assert done.code == 0, done.err
    config = yaml.safe_load((one_run(Path("runs")) / "config.yaml").read_text())["model"]["init_args"]["network"]
    assert {name: config["init_args"][name] for name in ("width", "words", "dropout")} == {
        **{"width": 6, "words": [1, "a"], "dropout": 0.5}
    }
