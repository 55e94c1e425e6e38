"""A loss that is no number: the run stops, says where, and leaves a checkpoint from before."""

import re
from pathlib import Path

import pytest
import torch
from commands import TOY, Outcome, call, one_run

from dafw.checkpoints import checkpoints
from dafw.data.sampler import JointBatchSampler, Stream
from dafw.methods import AdaptationMethod, Losses
from dafw.nn.network import Network
from dafw.problems import Outputs


class Poisoned(AdaptationMethod):
    """A term that is NaN in every step whose batch holds one sample of the source."""

    def __init__(self, network: Network, *, sample: int = -1, first: int = 0, **base) -> None:
        super().__init__(network, **base)
        self.sample, self.first = sample, first

    def losses(self, batch) -> Losses:
        held = ((batch.domain == 0) & (batch.index == self.sample)).any() & (self.step >= self.first)
        return super().losses(batch) | {"poison": torch.where(held, float("nan"), 0.0)}

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        return {}


class Cracked(AdaptationMethod):
    """A term that is 0 and whose gradient is NaN, from a given step on."""

    def __init__(self, network: Network, *, first: int = 4, **base) -> None:
        super().__init__(network, **base)
        self.first = first

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        distance = (joint.features - joint.features.detach()).square().sum()
        return {"crack": distance.sqrt() if self.step >= self.first else distance}


SAMPLE = 11


def batches(first: int) -> tuple[int, list[str]]:
    """The first step from ``first`` on that holds sample ``SAMPLE`` of a, and that batch's samples."""
    sampler = JointBatchSampler([Stream("a", 40, 8), Stream("b", 40, 8)], seed=0, steps_per_epoch=4)
    for step in range(first, 100):
        draws = sampler.batch(step)
        if any(draw.domain == 0 and draw.index == SAMPLE for draw in draws):
            return step, [f"{'ab'[draw.domain]}/{draw.index}" for draw in draws]
    raise AssertionError


def fit(capsys: pytest.CaptureFixture[str], method: str, *arguments: object) -> Outcome:
    steps = ("--data.steps_per_epoch", "4", "--trainer.max_epochs", "30", "--trainer.log_every_n_steps", "3")
    return call(capsys, "fit", "--model", f"{__name__}.{method}", *TOY, *steps, *arguments)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def finite(path: Path) -> bool:
    state = torch.load(path, weights_only=True)
    values = [*state["state_dict"].values()]
    values += [buffer for slot in state["optimizer_states"][0]["state"].values() for buffer in slot.values()]
    return all(bool(torch.as_tensor(value).isfinite().all()) for value in values if value is not None)


@pytest.mark.parametrize("every", [500, 2])
@pytest.mark.parametrize("first", [0, 6, 21])
def test_a_term(capsys: pytest.CaptureFixture[str], every: int, first: int) -> None:
    arguments = ("--model.sample", SAMPLE, "--model.first", first, "--run.checkpoint_every", every)
    failed = fit(capsys, "Poisoned", *arguments)
    step, names = batches(first)
    (path,) = checkpoints(one_run(Path("runs")) / "checkpoints")[:1]
    assert (failed.code, failed.err) == (
        1,
        f'dafw: error: the loss term "poison" became nan at step {step}; its batch held {", ".join(names)}; '
        f"the last good checkpoint is {path}\n",
    )
    assert path.name == f"step={step // every * every}.ckpt"
    assert all(map(finite, path.parent.iterdir()))
    assert not (path.parents[1] / "result.json").exists()
    again = fit(capsys, "Poisoned", *arguments)  # it goes on from there, and ends in the same way
    assert (again.code, again.err) == (1, failed.err)
    mended = call(capsys, "test", "--model", f"{__name__}.Poisoned", *TOY, "--ckpt_path", path)
    assert mended.code == 0


@pytest.mark.parametrize("every", [500, 5])
def test_a_gradient(capsys: pytest.CaptureFixture[str], every: int) -> None:
    """The terms of step 4 are numbers, the weights after it are not."""
    failed = fit(capsys, "Cracked", "--run.checkpoint_every", every)
    assert (failed.code, failed.err.count("\n")) == (1, 1)
    said = (
        r'the weight "network\.\S+" became NaN or infinite by step 5' if every == 5 else r'loss term "\w+" became nan'
    )
    assert re.search(said, failed.err)
    (path,) = checkpoints(one_run(Path("runs")) / "checkpoints")
    assert f"the last good checkpoint is {path}" in failed.err
    assert path.name == "step=0.ckpt"
    assert finite(path)


def test_metrics_before_it_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(capsys, "Poisoned", "--model.sample", SAMPLE, "--model.first", 21).code == 1
    folder = one_run(Path("runs"))
    steps = [int(line.split(",")[0]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 18
    assert "nan" not in (folder / "metrics.csv").read_text()
