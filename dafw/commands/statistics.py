"""``dafw statistics``: computes what a method needs of the source beforehand, where the source's data is."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from dafw.errors import UserError
from dafw.escape import terminal
from dafw.files import user_path
from dafw.names import quoted
from dafw.plain_yaml import load_yaml

HELP = """usage: dafw statistics RUN --model METHOD [options of dafw fit]

Computes what METHOD needs of the source, such as a Fisher information, from the model and the data of a source model's
run, and keeps it in RUN/statistics. A later training of METHOD on a stream then needs no sample of the source.
"""


def main(arguments: Sequence[str]) -> int:
    """Carries out ``dafw statistics``: prints the files, which are made unless they are there.

    Args:
        arguments: the directory of the source model's run, then options of ``dafw fit``, ``--model`` among them.

    Returns:
        0.

    Raises:
        UserError: for a mistake in the arguments, or for a method that needs no statistics of the source.
    """
    from dafw.methods.source_statistics import UsesSource
    from dafw.run.config import parse
    from dafw.run.directory import CONFIG, run_of

    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise UserError("dafw statistics needs a source model's run: dafw statistics RUN --model METHOD")
    if not any(argument.partition("=")[0] == "--model" for argument in arguments):
        raise UserError("dafw statistics needs the method that they are for: dafw statistics RUN --model METHOD")
    given, *rest = arguments
    run = run_of(user_path(given))
    if run is None:
        raise UserError(f"{given} is no run: there is no {CONFIG} in it")
    held = load_yaml((run / CONFIG).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, CONFIG)
        kept = {key: held[key] for key in ("seed_everything", "data") if key in held}
        config.write_text(quoted(yaml.safe_dump(kept, sort_keys=False)), encoding="utf-8")
        nothing = ("--trainer.limit_train_batches", "0")  # what a method takes from the source comes before its steps
        cli = parse(["--config", str(config), *rest, "--model.checkpoint", given, *nothing])
        method = cli.model
        if not isinstance(method, UsesSource):
            raise UserError(f"{type(method).__name__} needs no statistics of the source")
        cli.make_trainer([], [], Path(folder)).fit(method, cli.datamodule)
    for path in method.statistics_files:
        print(terminal(str(path)))
    return 0
