"""A study of runs that end at once, for the tests of ``dafw tune``."""

import json
from pathlib import Path
from typing import Any

import yaml
from commands import QUICK

from dafw.run.directory import run_directory
from dafw.tuning.study import Study

STUDY = Path("studies/dann.db")
TUNE = ("tune", "--model", "DANN", "--model.width", "8", *QUICK, "--study", STUDY)
IM = (*TUNE, "--objective", "im")
LR = 0.02


def fake_run(config: dict[str, Any], root: Path) -> Path:
    """Leaves a result whose ``im`` is best at ``LR``, whose ``dev`` is best far from it, as the oracle is."""
    folder = run_directory(config, root)
    distance = abs(config["model"]["init_args"]["lr"] - LR)
    scores = {
        "im": -distance + config["seed_everything"],
        "dev": -distance,
        "source_accuracy": 0.5,
        "snd": float("nan"),
    }
    last = {"step": 2, "validators": scores, "oracle": {"accuracy": distance}, "test": {}}
    first = {**last, "step": 1, "validators": {**scores, "im": 100 - distance, "snd": 1.0}}
    result = {
        "schema_version": 1,
        "metric": "accuracy",
        "target": ["b"],
        "test": {"b": {"accuracy": 0.4321}},
        "history": [first, last],
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def found(study: Path = STUDY) -> list[tuple[str, dict[str, Any], float | None]]:
    """State, parameters and objective of each trial that counts."""
    return [(t.state.name, t.params, t.values[0] if t.values else None) for t in Study(study).trials()]


def distances(study: Path = STUDY) -> list[float]:
    """How far from ``LR`` the trials were, the best first."""
    return [abs(trial.params["model.lr"] - LR) for trial in Study(study).best()]
