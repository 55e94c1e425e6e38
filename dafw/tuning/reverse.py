"""Reverse validation: how well a method finds its way back from the target, without a label of the target.

A run trains on source and target and predicts the target. A second run of the same configuration learns from these
predictions on the target, as its source, with the source as its target. Its metric on the source's validation split,
which trained neither run, is the score. Zhong et al., Cross Validation Framework to Choose amongst Models and Datasets
for Transfer Learning, ECML 2010; Ganin et al., JMLR 17 (2016), section 5.1.1, https://arxiv.org/abs/1505.07818.
"""

import math
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

from dafw.errors import UserError
from dafw.run.entry import run_command
from dafw.run.result import Result

OBJECTIVE = "reverse"
"""Name of the objective."""
PREDICTIONS = "reverse.csv"
"""Name of the file in a run's directory with the predictions that the second run learns from."""


def check_reversible(method: Any, data: Any, select: str) -> None:
    """Checks that a run has a way back.

    Args:
        method: of the run.
        data: its datamodule.
        select: which validation counts.

    Raises:
        UserError: if the method does not learn from labels of the source and see the target, starts from a model, or
            predicts no classes; if label sets differ; if another validation than the last one counts.
    """
    setting = method.setting
    if not (setting.sees_source and setting.sees_target) or setting.starts_from_model:
        raise UserError(
            f"--objective {OBJECTIVE} trains back from the target to the source, which a {setting.name} method does not"
        )
    if method.problem.kind != "classification" or data.label_sets is not None:
        raise UserError(f"--objective {OBJECTIVE} needs classes, and the same ones in source and target")
    if data.pseudo_labels is not None or data.oracle:
        key = "pseudo_labels" if data.pseudo_labels is not None else "oracle"
        raise UserError(f"--objective {OBJECTIVE} sets the labels itself: leave out data.{key}")
    if select != "last":
        raise UserError(f"--objective {OBJECTIVE} is the value of the final weights: leave out --select {select}")


def reversed_config(config: Mapping[str, Any], predictions: Path) -> dict[str, Any]:
    """The configuration of the second run: source and target change places, and so do their rows in a batch.

    Args:
        config: of the first run.
        predictions: the file of its predictions of the target.
    """
    found: dict[str, Any] = deepcopy(dict(config))
    data = found["data"]["init_args"]
    data["source"], data["target"] = data["target"], data["source"]
    if data.get("target_batch_size") is not None:
        data["batch_size"], data["target_batch_size"] = data["target_batch_size"], data["batch_size"]
    data["pseudo_labels"] = str(predictions)
    return found


def predict_target(folder: Path) -> Path:
    """Writes the predictions of a finished run for all samples of its targets, once.

    Args:
        folder: the run directory.

    Returns:
        The file.

    Raises:
        UserError: if the run cannot predict them.
    """
    path = folder / PREDICTIONS
    if path.exists():
        return path
    said = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(said):
        code = run_command("predict", [str(folder), "--split", "all", "--output", str(path)])
    if code:
        lines = said.getvalue().strip().splitlines() or [f"exit code {code}"]
        raise UserError(f"the target of {folder} cannot be predicted: {lines[-1].removeprefix('dafw: error: ')}")
    return path


def reverse_score(result: Result) -> float:
    """The metric of the second run on the source's validation split at its last validation.

    Raises:
        UserError: if there is none.
    """
    value = result.history[-1].oracle.get(result.metric, math.nan) if result.history else math.nan
    if not math.isfinite(value):
        raise UserError(f"the second run has no {result.metric} on the validation split of {', '.join(result.target)}")
    return value
