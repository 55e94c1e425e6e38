"""The results of all runs in a folder. It needs no torch."""

from pathlib import Path
from typing import Any

from dafw.errors import UserError, sentence, warn
from dafw.export.frames import import_pandas
from dafw.files import user_path
from dafw.run.criteria import CellResult
from dafw.run.result import RESULT, BrokenResult, read_result


def results(root: str | Path = "runs", *, frame: bool = False) -> Any:
    """The finished runs whose directories lie in a folder, in the order of their names.

    A run without a result is left out. A result that cannot be read is left out with a warning.

    Args:
        root: the folder of the run directories.
        frame: give a pandas frame with a row for each run; ``metrics/last/b`` is then a column.

    Returns:
        A dictionary for each run: ``method``, ``task`` and ``seed``; ``metric``, the name of its metric; ``metrics``,
        by criterion and then by target, the value of that metric on the test split, as a fraction, at the checkpoint
        that the criterion chooses; ``oracle``, whether target labels trained it; ``steps``, ``seconds`` and
        ``directory``. The criterion ``oracle`` chooses by target labels.

    Raises:
        UserError: if there is no such folder, or no pandas for a frame.
    """
    folder = user_path(root)
    if not folder.is_dir():
        raise UserError(f"there is no folder {root}: give the folder of the run directories")
    rows = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        try:
            row = _row(path.parent)
        except BrokenResult as error:
            warn(sentence(error))
        else:
            rows += [] if row is None else [row]
    return import_pandas().json_normalize(rows, sep="/") if frame else rows


def _row(directory: Path) -> dict[str, Any] | None:
    run = read_result(directory)
    if run is None:
        return None
    read = CellResult(run, directory, run.metric)
    scores = {criterion: read.scores(criterion) for criterion in read.criteria}
    return {
        "method": run.method,
        "task": run.task,
        "seed": run.seed,
        "metric": run.metric,
        "metrics": {criterion: found for criterion, found in scores.items() if found is not None},
        "oracle": run.oracle,
        "steps": run.steps,
        "seconds": run.seconds["total"],
        "directory": str(directory),
    }
