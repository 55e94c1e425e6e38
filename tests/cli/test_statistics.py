"""``dafw statistics``: what a method needs of the source is computed before its training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, TOY, call, one_run, refused

METHOD = '''
import torch

from dafw.methods import TestTimeMethod
from dafw.methods.source_statistics import UsesSource
from dafw.nn.network import Network


class TowardsMean(UsesSource, TestTimeMethod):
    """Features come closer to the source's mean feature."""

    def __init__(self, network: Network, *, samples: int = 20, **base):
        super().__init__(network, **base)
        self.samples = samples
        self.register_buffer("mean", torch.zeros(8))

    def take_from_source(self):
        self.mean.copy_(self.source_statistics("mean", self.mean_feature, count=self.samples)["mean"])

    @torch.no_grad()
    def mean_feature(self, batches):
        return {"mean": torch.cat([self.start_outputs(batch).features for batch in batches]).mean(0)}

    def adapt(self, outputs, batch):
        return {"mean": (outputs.features - self.mean).square().mean()}
'''


@pytest.fixture
def source(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a source model, beside the user's method."""
    Path("towards.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    done = call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--run.root", "source")
    assert done.code == 0, done.err
    return one_run(Path("source"))


def test_they_are_made_once_and_a_stream_uses_them(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("statistics", source, "--model", "towards.TowardsMean", "--trainer.accelerator", "cpu")
    done = call(capsys, *command)
    assert done.code == 0, done.err
    path = Path(done.out.strip())
    assert (path.parent, path.suffix) == (source / "statistics", ".safetensors")
    made = path.stat().st_mtime_ns
    other = call(capsys, *command, "--model.samples", "10")
    assert (other.code, other.out != done.out) == (0, True)
    assert call(capsys, *command).out == done.out
    arguments: Any = (*TOY[: TOY.index("--model.network.backbone")], *TOY[TOY.index("--trainer.accelerator") :])
    fitted = call(capsys, "fit", "--model", "towards.TowardsMean", "--model.checkpoint", source, *arguments)
    assert fitted.code == 0, fitted.err
    assert path.stat().st_mtime_ns == made
    assert '"source_use": "statistics"' in (one_run(Path("runs")) / "result.json").read_text()
    assert len(list(path.parent.glob("*.safetensors"))) == 2


def test_what_it_refuses(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs a source model's run" in refused(capsys, "statistics", "--model", "DANN")
    assert "needs the method" in refused(capsys, "statistics", source)
    assert "nowhere is no run: there is no config.yaml in it" in refused(
        capsys, "statistics", "nowhere", "--model", "X"
    )
    said = refused(capsys, "statistics", source, "--model", "SHOT", "--trainer.accelerator", "cpu")
    assert said == "SHOT needs no statistics of the source"
    shutil.rmtree(source / "checkpoints")
    assert "there is no checkpoint" in refused(capsys, "statistics", source, "--model", "towards.TowardsMean")
