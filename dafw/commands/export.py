"""``dafw export``: writes a run's model for other programs."""

import argparse

from dafw.escape import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``dafw export``."""
    parser.add_argument("run", metavar="RUN", help="a finished run: its directory, or a checkpoint")
    parser.add_argument("--to", default="safetensors", metavar="FORM", help="torch, onnx or safetensors (safetensors)")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16 or float16 (float32)")
    parser.add_argument("--output", default="model", metavar="FOLDER", help="the folder to write (model)")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="images for the check of the model")
    parser.add_argument("--resize", choices=("inside", "outside"), default="inside", help="who scales images (inside)")
    parser.add_argument("--tolerance", type=float, help="how far a probability may be from the run's own")
    parser.add_argument("--opset", type=int, help="of ONNX")
    parser.add_argument("--control", metavar="RUN", help="the run of the control, whose number the card shows")
    parser.add_argument("--licence", default="", help="licence of the data, for the card")


def main(arguments: argparse.Namespace) -> int:
    """Carries out ``dafw export``, and prints the folder.

    Raises:
        UserError: for a mistake in the arguments, or a model that cannot be exported.
    """
    from dafw.api.exporting import save
    from dafw.api.given import load_run

    config = save(
        load_run(arguments.run),
        arguments.output,
        to=arguments.to,
        dtype=arguments.dtype,
        images=arguments.images,
        resize=arguments.resize == "inside",
        tolerance=arguments.tolerance,
        opset=arguments.opset,
        control=arguments.control,
        licence=arguments.licence,
    )
    check = f"checked on {config.about['check']['images']} images, {config.about['check images']}"
    print(f"{check}: a probability differs by {config.difference:.2g} at most")
    print(terminal(arguments.output))
    return 0
