"""A user's own method, datamodule and network lie beside the command and are named by class path."""

import json
from pathlib import Path

import pytest
from commands import TOY, call, one_run

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
