"""``dafw adapt``: a model and a folder of images without labels to an adapted, exported model and its report."""

import argparse
import sys
from collections.abc import Sequence

from dafw.escape import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``dafw adapt``. All others go to ``dafw fit``."""
    parser.add_argument("model", metavar="MODEL", help="an exported model, a run, a timm model or its file")
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="files or folders of images")
    parser.add_argument("--method", required=True, help="AdaBN, a source-free or a test-time method, as SHOT or Tent")
    parser.add_argument("--output", default="adapted", metavar="FOLDER", help="the folder to write (adapted)")
    parser.add_argument("--batch_size", type=int, default=32, help="images a step (32)")
    parser.add_argument("--classes", metavar="FILE", help="of a timm model: the names of its classes, one a line")
    parser.add_argument("--backbone", help="the timm model that a file of weights is of")
    parser.add_argument(
        "--trust", choices=("true", "false"), default="false", help="import the model's own classes (false)"
    )


def main(arguments: argparse.Namespace, further: Sequence[str]) -> int:
    """Adapts, exports both models, and prints what can be said of the gain.

    Args:
        arguments: of the command.
        further: options of ``dafw fit``.

    Returns:
        0 if done; else what ``dafw fit`` returns.

    Raises:
        UserError: for a mistake in the arguments.
    """
    import dafw.methods
    from dafw.api import adapting
    from dafw.commands.listing import methods
    from dafw.errors import UserError, choose
    from dafw.files import user_path
    from dafw.run.entry import run_command

    folder = user_path(arguments.output)
    goes_on = (folder / "run").is_dir() and not (folder / adapting.REPORT).exists()
    if folder.exists() and not goes_on:
        raise UserError(f"{folder} exists already: give another --output, or remove it")
    if arguments.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {arguments.batch_size}")
    method = getattr(dafw.methods, choose("method", arguments.method, methods()))
    adapting.check_method(method)
    classes = user_path(arguments.classes).read_text(encoding="utf-8").splitlines() if arguments.classes else []
    work = folder / "run"
    new = not folder.exists()
    try:
        start = adapting.starting_model(arguments.model, work, classes, arguments.backbone, arguments.trust == "true")
        paths = adapting.images_of(arguments.images, start.how)
        config = adapting.configuration(start, method, paths, work, arguments.batch_size)
        if method is dafw.methods.AdaBN:
            work.mkdir(parents=True, exist_ok=True)
            adapted = adapting.new_statistics(start, config)
        else:
            adapting.write_configuration(config, work / "asked.yaml")
            if code := run_command("fit", ["--config", str(work / "asked.yaml"), *further]):
                _forget(folder, new)
                return code
            adapted = adapting.load_adapted(work)
        found = adapting.finish(start, adapted, paths, folder, arguments.model, arguments.batch_size)
    except UserError:
        _forget(folder, new)
        raise
    print(terminal(found.verdict), file=sys.stdout)
    print(terminal(str(folder)))
    return 0


def _forget(folder: object, new: bool) -> None:
    """Removes what a mistake left, unless a training has begun there."""
    import shutil
    from pathlib import Path

    place = Path(str(folder))
    if new and place.exists() and not any((place / "run").glob("checkpoints/*.ckpt")):
        shutil.rmtree(place, ignore_errors=True)
