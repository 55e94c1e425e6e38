"""Who makes the runs of a table: a pool of this machine, a SLURM cluster, or a function of the user's.

A launcher is a function of the table, the root of the run directories and a reporter. It makes every run that is not
done and returns a :class:`~dafw.tables.launch.Report`.
"""

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dafw.errors import UserError, choose, sentence
from dafw.tables import launch
from dafw.tables.grid import Table
from dafw.tables.progress import Reporter

Launcher = Callable[[Table, Path, Reporter], launch.Report]
OWN = ("local", "slurm")


def launcher(args: argparse.Namespace) -> Launcher:
    """The launcher that the options of ``dafw table run`` name.

    Raises:
        UserError: for a name that is none, or an option that does not fit.
    """
    name: str = args.launcher
    if name == "slurm":
        from dafw.tables.slurm import parse_cluster, submit_table

        return partial(submit_table, cluster=parse_cluster(args.slurm), function=args.function)
    if args.slurm:
        raise UserError(f"--slurm is for the launcher slurm, and the launcher is {name}")
    if name == "local":
        return partial(launch.run_table, workers=args.workers, function=args.function)
    module, colon, function = name.partition(":")
    if not colon:
        choose("launcher", name, OWN)
    try:
        theirs: Launcher = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(f"--launcher {name}: {sentence(error)}") from error
    except AttributeError as error:
        raise UserError(f"--launcher {name}: the module {module} has no {function}") from error
    return theirs
