"""A study of runs that end at once, for the tests of ``dafw tune``."""

from pathlib import Path
from typing import Any

import yaml
from commands import QUICK

from dafw.run.directory import run_directory
from dafw.run.result import RESULT, Result, SettingRecord, Validation, write_result
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
    last = Validation(2, scores, {"accuracy": distance}, {})
    first = Validation(1, {**scores, "im": 100 - distance, "snd": 1.0}, {"accuracy": distance}, {})
    result = Result(
        method="DANN",
        task="a->b",
        source=("a",),
        target=("b",),
        setting=SettingRecord("adaptation", source=True, target=True),
        seed=config["seed_everything"],
        oracle=False,
        transductive_reason="",
        averaged="",
        monitors=(),
        norm="joint",
        ranks=1,
        threads=1,
        config_hash=folder.name[-8:],
        steps=2,
        seconds={"total": 1.0, "train": 0.5, "evaluate": 0.5},
        num_target_test=10,
        metric="accuracy",
        label_sets={"kind": "closed"},
        undefined_reason={},
        test={"b": {"accuracy": 0.4321}},
        by_class={},
        history=(first, last),
        higher_is_better={},
        versions={},
        git_revision="",
        machine="",
    )
    write_result(result, folder / RESULT)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def found(study: Path = STUDY) -> list[tuple[str, dict[str, Any], float | None]]:
    """State, parameters and objective of each trial that counts."""
    return [(t.state.name, t.params, t.values[0] if t.values else None) for t in Study(study).trials()]


def distances(study: Path = STUDY) -> list[float]:
    """How far from ``LR`` the trials were, the best first."""
    return [abs(trial.params["model.lr"] - LR) for trial in Study(study).best()]
