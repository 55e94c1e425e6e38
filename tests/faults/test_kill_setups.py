"""Runs of every kind, killed at random moments, end with the weights, log and result of an undisturbed run."""

import random
import signal
from pathlib import Path

import pytest
from commands import QUICK, TOY, fork, one_run
from interrupted import FIT, at_moment, ranks, same

from dafw.files import UNFINISHED

TOYS = ("--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b", "--data.batch_size", "8")
REST = ("--trainer.accelerator", "cpu", "--run.plots", "false", "--trainer.log_every_n_steps", "3")
SHORT = (*REST, "--data.steps_per_epoch", "3", "--trainer.max_epochs", "2")
#: By name the arguments of ``dafw``; SOURCE stands for the directory of a source model's run.
SETUPS: dict[str, tuple[str, ...]] = {
    "classes": FIT,
    "masks": (
        *("fit", "--model", "DANN", "--model.width", "8", "--model.network", "dafw.testing.dense_toys.ToySegmenter"),
        *("--model.problem", "Segmentation", *TOYS, "--data.kind", "segmentation", "--data.sizes", "true", *SHORT),
    ),
    "boxes": (
        *("fit", "--model", "SourceOnly", "--model.network", "Detector", "--model.problem", "Detection"),
        *("--model.network.proposals_in_training", "20", *TOYS, "--data.kind", "detection", *SHORT),
    ),
    "source-free": ("fit", "--model", "SHOT", "--model.checkpoint", "SOURCE", *TOYS, *SHORT),
    "SWAD": (
        *("fit", "--model", "ERM", *TOY, "--data.source", "[a,b]", "--data.target", "c", *REST[4:]),
        *("--data.steps_per_epoch", "2", "--trainer.max_epochs", "6", "--trainer.callbacks", "SWAD"),
        *("--trainer.callbacks.n_converge", "2", "--trainer.callbacks.n_tolerance", "2"),
    ),
    "moving average": (*FIT, "--model.ema_decay", "0.9"),
    "two ranks": (*FIT, "--trainer.devices", "2"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a source model."""
    folder = tmp_path_factory.mktemp("source")
    assert fork(folder, "fit", "--model", "SourceOnly", *QUICK).wait().code == 0
    return one_run(folder / "runs")


@pytest.mark.parametrize("name", SETUPS)
def test_killed_at_random_moments(tmp_path: Path, source: Path, name: str) -> None:
    """Two kills, each at a moment that the name of the setup draws."""
    arguments = [str(source) if word == "SOURCE" else word for word in SETUPS[name]]
    arguments += ["--run.checkpoint_every", "2"]
    two = name == "two ranks"

    def fit(folder: Path, moment: int = 0, counted: Path | None = None) -> int:
        """The exit code; that of the rank that is killed, which is the first or the second by the moment's number."""
        dying, living = at_moment(moment, counted), at_moment(0)
        if not two:
            return fork(folder, *arguments, setup=dying).wait().code
        killed = moment % 2
        return ranks(folder, *arguments, setups=(living, dying) if killed else (dying, living))[killed].code

    draw = random.Random(name)
    counted = tmp_path / "moments"
    assert fit(tmp_path / "whole", counted=counted) == 0
    moments = int(counted.read_text())
    assert moments > 20
    # Before two thirds of its moments a run is never done, and one that goes on from there makes a third at least.
    assert fit(tmp_path / "parts", draw.randrange(1, 2 * moments // 3)) == -signal.SIGKILL
    assert fit(tmp_path / "parts", draw.randrange(1, moments // 3)) == -signal.SIGKILL
    assert fit(tmp_path / "parts") == 0
    parts = one_run(tmp_path / "parts" / "runs")
    same(parts, one_run(tmp_path / "whole" / "runs"))
    assert not list(parts.rglob(f"*{UNFINISHED}"))
