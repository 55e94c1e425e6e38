"""The ``dafw`` command. A subcommand imports torch when it needs it, and nothing here does."""

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dafw import __version__
from dafw.errors import UserError, choose, nearest, sentence
from dafw.files import naming_files, user_path

RUN_COMMANDS = {
    "fit": "train, test, and write a run directory; the same command resumes an interrupted run",
    "validate": "the validators and source accuracy of a run: dafw validate RUN",
    "test": "every domain's test metrics of a run: dafw test RUN",
    "predict": "a file with sample, prediction and probabilities: dafw predict RUN|MODEL [--images FOLDER]",
    "estimate": "the accuracy on images without labels, estimated: dafw estimate RUN [--images FOLDER] [--with RUN2]",
}
OTHER_COMMANDS = {
    "methods": "every method, one line each",
    "datasets": "every datamodule and its domains, one line each",
    "presets": "every configuration that --config can name, one line each",
    "runs": "list the runs of a folder, or say what differs between two of them",
    "data": "unpack, check or cache an image benchmark on disk, or list what is known",
    "export": "write a run's model for other programs: dafw export RUN --to torch|onnx|safetensors",
    "adapt": "adapt a model to a folder of images without labels: dafw adapt MODEL --images FOLDER --method METHOD",
    "statistics": "compute what a method needs of the source, from a source model's run: dafw statistics RUN",
    "tune": "search a method's hyper-parameters by a score that needs no target label",
    "table": "run, show or check a table of methods x tasks x seeds",
    "new": "write a working method and its test into this directory",
}

HELP = """usage: dafw COMMAND [options]

Domain adaptation and generalisation: train where there are labels, serve where there are none.

{commands}

  dafw fit --config digits/quick_dann
  dafw fit --model DANN --data Digits --data.source mnist --data.target mnistm
  dafw table run digits
  dafw COMMAND --help   options of a command        dafw --version
"""


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one sentence, as all commands have."""

    def error(self, message: str) -> NoReturn:
        """Raises :class:`UserError` instead of printing the usage and exiting."""
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", match[2])
            raise UserError(f'unknown choice "{match[1]}" of {self.prog}: {nearest(match[1], choices)}')
        raise UserError(f"{self.prog}: {message}")


def usage() -> str:
    """The help text of the command itself."""
    lines = [f"  {name:<10} {text}" for name, text in (RUN_COMMANDS | OTHER_COMMANDS).items()]
    return HELP.format(commands="\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments after the program's name; those of the process if ``None``.

    Returns:
        0 if done; 1 if a run or a table cell failed; 2 for a mistake of the user or a file that cannot be read or
        written; 128 + n after signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that a terminal does not
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        print(f"dafw {__version__}")
        return 0
    try:
        with naming_files():
            return _dispatch(arguments[0], arguments[1:])
    except UserError as error:
        print(f"dafw: error: {sentence(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _dispatch(command: str, rest: list[str]) -> int:
    choose("command", command, [*RUN_COMMANDS, *OTHER_COMMANDS])
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # a user's own method or datamodule lies beside the command
    if command == "predict" and rest and (user_path(rest[0]) / "config.json").is_file():  # no run has such a file
        from dafw.commands.predict import add_arguments as add_predict
        from dafw.commands.predict import main as predict

        parser = Parser(prog="dafw predict", description=RUN_COMMANDS[command])
        add_predict(parser)
        return predict(parser.parse_args(rest))
    if command in RUN_COMMANDS:
        if (page := _help(command, rest)) is not None:
            print(page, end="")
            raise SystemExit(0)  # as argparse ends
        if sys.stderr.isatty():
            print("loading ...", file=sys.stderr)
        from dafw.run.entry import run_command

        return run_command(command, rest)
    parser = Parser(prog=f"dafw {command}", description=OTHER_COMMANDS[command])
    if command == "table":
        from dafw.tables.commands import add_arguments
        from dafw.tables.commands import main as table

        add_arguments(parser)
        return table(parser.parse_args(rest))
    if command == "data" and rest[:1] == ["labels"]:
        from dafw.commands.labels import main as labels

        return labels(rest[1:])
    if command == "data":
        from dafw.commands.data import add_arguments as add_data
        from dafw.commands.data import main as data

        add_data(parser)
        return data(parser.parse_args(rest))
    if command == "export":
        from dafw.commands.export import add_arguments as add_export
        from dafw.commands.export import main as export

        add_export(parser)
        return export(parser.parse_args(rest))
    if command == "adapt":
        from dafw.commands.adapt import add_arguments as add_adapt
        from dafw.commands.adapt import main as adapt

        add_adapt(parser)
        return adapt(*parser.parse_known_args(rest))
    if command == "statistics":
        from dafw.commands.statistics import main as statistics

        return statistics(rest)
    if command == "tune":
        from dafw.tuning.commands import add_arguments as add_tune
        from dafw.tuning.commands import main as tune

        add_tune(parser)
        return tune(parser, rest)
    if command == "runs":
        from dafw.commands.runs import add_arguments as add_runs
        from dafw.commands.runs import main as runs

        add_runs(parser)
        return runs(parser.parse_args(rest))
    if command == "new":
        from dafw.commands.new import add_arguments as add_new
        from dafw.commands.new import main as new

        add_new(parser)
        return new(parser.parse_args(rest))
    parser.parse_args(rest)
    for name, text in _listed(command).items():
        print(f"{name:<20} {text}")
    return 0


def _help(command: str, rest: list[str]) -> str | None:
    """The short page of a command's help; ``None`` if none is asked for, or all of it with ``--help all``."""
    from dafw.commands.help import run_help, short_help

    if "--run.help" in rest:
        return run_help()
    asked = [i for i, word in enumerate(rest) if word in ("-h", "--help")]
    if not asked or rest[asked[0] + 1 : asked[0] + 2] == ["all"]:
        return None
    return short_help(command, RUN_COMMANDS[command])


def _listed(command: str) -> dict[str, str]:
    """What ``dafw methods``, ``dafw datasets`` and ``dafw presets`` print: a text for each name."""
    if command == "presets":
        from dafw.run.presets import presets, summary

        return {name: summary(path) for name, path in presets().items()}
    from dafw.commands.listing import datasets, methods

    return methods() if command == "methods" else datasets()
