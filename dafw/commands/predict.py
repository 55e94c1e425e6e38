"""``dafw predict`` with an exported model: the same files as with a run. It needs no Lightning."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``dafw predict`` that an exported model takes."""
    parser.add_argument("model", metavar="MODEL", help="the folder of an exported model")
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="files or folders of images")
    parser.add_argument("--output", metavar="FILE", help="the file to write, of masks a folder (predictions[.csv])")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time (64)")
    parser.add_argument("--trust", choices=("true", "false"), default="false", help="let code of the model run (false)")
    parser.add_argument("--device", default="cpu", help="where the model runs (cpu)")


def main(arguments: argparse.Namespace) -> int:
    """Predicts the images, and lists the files that were left out.

    Raises:
        UserError: for a mistake in the arguments, a model that was refused, or if no image can be read.
    """
    from torch import Tensor

    from dafw.data.readers import image_size
    from dafw.errors import UserError
    from dafw.export.pretrained import from_pretrained
    from dafw.files import user_path
    from dafw.problems import Predicted
    from dafw.run.images import DOMAIN, ImageBatches, find_images

    if arguments.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {arguments.batch_size}")
    model = from_pretrained(arguments.model, trust=arguments.trust == "true", device=arguments.device)
    problem = model.problem
    output = user_path(arguments.output or problem.predictions_name)
    problem.check_output(output)
    paths: list[Path] = find_images(arguments.images)
    size = 1 if model.config.any_size else arguments.batch_size
    loader = ImageBatches(paths, model.prepare, size, None)
    positions: list[int] = []
    columns: dict[str, list[object]] = {}
    for batch in loader:
        positions += batch.index.tolist()
        sizes = [image_size(paths[position]) for position in batch.index.tolist()] if problem.is_spatial else None
        for key, value in model.columns(batch.x, sizes).items():
            rows = value.tolist() if isinstance(value, Tensor) and value.ndim < 3 else list(value)
            columns.setdefault(key, []).extend(rows)
    loader.report()
    ids = [str(paths[position]) for position in positions]
    problem.write_predictions([Predicted(DOMAIN, ids, columns)], model.class_names, output)
    print(f"{len(ids)} predictions; skipped files: {len(loader.skipped)}")
    print(output)
    return 0
