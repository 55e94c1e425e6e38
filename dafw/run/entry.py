"""Where a run starts. Nothing here imports torch before it does, so a worker can set torch's environment first."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dafw.files import naming_files, write_atomically
from dafw.names import quoted
from dafw.run.directory import run_directory
from dafw.run.ranks import fit_over_ranks, ranks_of
from dafw.run.result import read_result


@naming_files()
def execute(config: dict[str, Any], root: Path) -> Path:
    """Makes or resumes one run in this process, or over several ranks if ``trainer.devices`` is above 1.

    Args:
        config: the configuration as in a file (``seed_everything``, ``model``, ``data``, ``trainer``, ``run``).
        root: folder of the run directories.

    Returns:
        The run directory, which has a result.

    Raises:
        UserError: for a mistake in the configuration, or for a disk that is full or may not be written.
            ``Busy``, one of its kinds, if another process makes the run.
        TrainingFailure: if a loss became NaN or infinite, or a teacher collapsed.
        Stopped: if a signal ended the run. Over several ranks ``SystemExit`` and ``RanksFailed`` stand for it and for
            TrainingFailure.
    """
    folder = run_directory(config, root)
    if read_result(folder) is None:
        asked = {**config, "run": {**config.get("run", {}), "dir": str(folder)}}
        write_atomically(folder / "asked.yaml", quoted(yaml.safe_dump(asked, sort_keys=False)))
        if ranks_of(config) > 1:
            fit_over_ranks(folder, folder / "asked.yaml")
            return folder
        from dafw.run.commands import fit
        from dafw.run.config import parse
        from dafw.run.threads import kept_threads

        with kept_threads():
            fit(parse(["--config", str(folder / "asked.yaml")]))
    return folder


class Inspected(NamedTuple):
    """What the runs of a configuration have.

    Attributes:
        domains: names of the domains that the data has.
        scores: names of the scores that a validation records.
        metrics: names of the metrics of a test; empty if they are not known before a run.
        targets: names of the targets, with those that a stream adds.
    """

    domains: tuple[str, ...]
    scores: tuple[str, ...]
    metrics: tuple[str, ...]
    targets: tuple[str, ...]


def inspect(config: dict[str, Any]) -> Inspected:
    """Makes the method, the data and the callbacks of a run, and trains nothing.

    Args:
        config: as for :func:`execute`.

    Raises:
        UserError: for a mistake in the configuration.
    """
    from dafw.methods import Method
    from dafw.methods.serving import SECOND
    from dafw.run.checks import check_monitors, directions
    from dafw.run.config import parse
    from dafw.run.threads import kept_threads

    with kept_threads(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "asked.yaml")
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        cli = parse(["--config", str(path)])
    given = cli.config_init["trainer"]["callbacks"] or []
    callbacks = given if isinstance(given, list) else [given]
    check_monitors(callbacks, cli.model, cli.config_init["run"].allow_oracle)
    primary = f"source_train_{cli.model.problem.primary}"
    scores = (*directions(cli.model), *([primary] if cli.datamodule.evaluate_train else []))
    method, data = cli.model, cli.datamodule
    further = (type(method).extra_test_metrics, type(method).evaluate_variants)
    named = further == (Method.extra_test_metrics, Method.evaluate_variants)
    metrics = method.evaluator.metric_names(tuple(data.known_names), data.has_unknown) if named else ()
    metrics += tuple(name + SECOND for name in metrics) if method.target_statistics else ()
    return Inspected(tuple(data.domain_names), scores, metrics, tuple(data.target))


def run_command(command: str, arguments: Sequence[str]) -> int:
    """Carries out ``dafw fit``, ``validate``, ``test`` or ``predict``, and returns the exit code."""
    from dafw.run.commands import main

    return main(command, list(arguments))
