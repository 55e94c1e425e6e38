"""``dafw table``: run, show, status, cancel and list."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dafw.errors import warn
from dafw.escape import terminal
from dafw.files import user_path
from dafw.run.directory import discard, lock
from dafw.run.worker import EXECUTE
from dafw.tables.checking import check_runs
from dafw.tables.costs import costs
from dafw.tables.criteria import criteria
from dafw.tables.further import Further, further_csv, further_latex, further_markdown, further_terminal
from dafw.tables.grid import Table
from dafw.tables.launchers import launcher
from dafw.tables.overlay import parse_settings
from dafw.tables.pages import check_page, write_pages
from dafw.tables.progress import make_reporter
from dafw.tables.queue import cancel
from dafw.tables.reading import find_table, load_table, table_files
from dafw.tables.render import render_csv, render_latex, render_markdown, render_terminal
from dafw.tables.sheet import Sheet, make_sheet
from dafw.tables.significance import significance
from dafw.tables.status import describe, states
from dafw.tables.store import Store, load
from dafw.tables.tracking import track_table

TEXT: dict[str, tuple[Callable[[Sheet], str], Callable[[Sequence[Further]], str]]] = {
    "markdown": (render_markdown, further_markdown),
    "latex": (render_latex, further_latex),
    "csv": (render_csv, further_csv),
}
"""By format, what writes the table and what writes those below it."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``table`` to the commands of a parser."""
    add_arguments(subparsers.add_parser("table", help="run, show or check a table of methods x tasks x seeds"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands to the parser of ``dafw table``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="run | show | status | cancel | list")
    run = actions.add_parser("run", help="make every run that is not done, then show the table")
    show = actions.add_parser("show", help="print the table and write its pages")
    status = actions.add_parser("status", help="count the runs that are done, running, failed, interrupted or missing")
    cancel_jobs = actions.add_parser("cancel", help="end the jobs of a table on a SLURM cluster")
    actions.add_parser("list", help="the tables that can be named")
    for one in (run, show, status, cancel_jobs):
        one.add_argument("table", help="a table file, or the name of one in experiments/tables")
        one.add_argument("--root", type=user_path, default=Path("runs"), help="folder of the run directories (runs)")
        one.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="laid over every cell"
        )
    for one in (run, show, status):
        several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
        rows = 'only these rows, with their controls; a name with blanks stands in quotes, as in "source only, strong"'
        one.add_argument("--rows", metavar="ROW", help=rows, **several)
        one.add_argument("--tasks", metavar="TASK", help='only these tasks, as in "mnist->usps"', **several)
        one.add_argument("--seeds", type=int, metavar="SEED", help="only these seeds", **several)
    for one in (run, show):
        one.add_argument("--metric", help="what to print instead of the table's metrics, as in h_score_class_mean")
        criteria = "last, a validator, leave_one_domain_out, or oracle"
        one.add_argument("--select", nargs="+", default=[], metavar="CRITERION", help=criteria)
        one.add_argument("--allow-oracle", action="store_true", help="allow checkpoints chosen with target labels")
    formats = ("terminal", *TEXT, "html")
    show.add_argument("--format", choices=formats, default="terminal", help="what to print; html: the page's path")
    show.add_argument(
        "--tests", action="store_true", help="tests over seeds and tasks, and mean ranks, below the table"
    )
    show.add_argument("--criteria", action="store_true", help="all criteria side by side, with --allow-oracle regrets")
    show.add_argument("--costs", action="store_true", help="seconds, samples/s and peak memory of each row")
    wandb = "log the table and its files to W&B, offline unless it says online"
    show.add_argument("--wandb", nargs="?", choices=("offline", "online"), const="offline", help=wandb)
    run.add_argument("--workers", type=_positive, help="processes (default: one per GPU, or one per core)")
    whose = "local, slurm, or a function of yours: package.module:function"
    run.add_argument("--launcher", default="local", help=whose)
    run.add_argument("--slurm", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as in partition=gpu")
    run.add_argument("--dry-run", action="store_true", help="print what there is to do, and do nothing")
    what = "make finished runs again: those that other code or other data made (stale, the default), or all"
    run.add_argument("--rerun", nargs="?", choices=("stale", "all"), const="stale", help=what)
    run.set_defaults(function=EXECUTE)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Carries out a parsed ``dafw table`` command.

    Returns:
        0; 1 if a cell of the table has no number after ``run``; 130 if it was interrupted.

    Raises:
        UserError: for what the user can mend.
    """
    if args.action == "list":
        for name, path in sorted(table_files().items()):
            print(terminal(f"{name:<20} {load_table(path).title}"))
        return 0
    table = load_table(find_table(args.table))
    if args.action == "cancel":
        return _cancel(table.with_settings(parse_settings(args.set)), args.root)
    table = table.only(args.rows, args.tasks, args.seeds).with_settings(parse_settings(args.set))
    if args.action == "status":
        print(describe(load(table, args.root)))
        return 0
    table = table.with_selection(args.select, args.allow_oracle)
    if args.metric:
        table = replace(table, metric=args.metric, further_metrics=())
    if args.action == "show":
        return _show(table, args)
    return _run(table, args)


def _show(table: Table, args: argparse.Namespace) -> int:
    store = load(table, args.root)
    check_page(store, args.root)
    warn_of_changes(store)
    sheet = make_sheet(store)
    tests = significance(store) if args.tests else ()
    asked = (*tests, *(criteria(store) if args.criteria else ()), *(costs(store) if args.costs else ()))
    if args.format == "terminal":
        render_terminal(sheet, Console())
        further_terminal(asked, Console())
    if args.format in TEXT:
        write, write_further = TEXT[args.format]
        sys.stdout.write(write(sheet) + write_further(asked))
    sys.stdout.flush()  # pictures may take seconds
    page = write_pages(sheet, store, args.root, tests)
    if args.wandb:
        track_table(sheet, store, page.parent, args.wandb)
    if args.format not in TEXT:
        print(page)
    return 0


def _cancel(table: Table, root: Path) -> int:
    store = load(table, root)
    ended = cancel(dict.fromkeys(store.directories.values()))
    if not ended:
        print("no run of the table has a job in the queue")
    for number in ended:
        print(f"job {number} is cancelled")
    return 0


def warn_of_changes(store: Store) -> None:
    """Says which rows were made by other code, or from other data, than that which is there."""
    for said in store.origins:
        warn(f"{said}; dafw table run --rerun stale makes them again")


def _run(table: Table, args: argparse.Namespace) -> int:
    launch = launcher(args)
    store = load(table, args.root, look=True)
    again = {"stale": store.stale, "all": {*store.results, *store.broken}}.get(args.rerun, set())
    if args.dry_run:
        found = states(store)
        for cell in table.runs():
            key = cell.row, cell.task, cell.seed
            state = "again" if key in again else found[cell.label]
            print(terminal(f"{state:<12} {cell.line:<50} {store.directories[key]}"))
        return 0
    make_sheet(store)  # an unknown criterion fails before any run is made
    kept = {key: result for key, result in store.results.items() if key not in again}
    changed, other_data = (
        {key: what for key, what in found.items() if key in kept} for found in (store.changed, store.other_data)
    )
    store = replace(store, results=kept, changed=changed, other_data=other_data)
    if args.function == EXECUTE:
        check_runs(store)
    for directory in {store.directories[key] for key in again}:
        with lock(directory):
            discard(directory)
    warn_of_changes(store)
    reporter = make_reporter(Console(stderr=True) if sys.stderr.isatty() else Console())
    report = launch(table, args.root, reporter)
    if report.interrupted and args.launcher == "slurm":
        print(f"the jobs go on, this program does not wait for them; dafw table cancel {args.table} ends them")
        if report.unsubmitted:
            print(f"{report.unsubmitted} runs start from others, and are submitted by the same command afterwards")
    store = load(table, args.root)
    sheet = make_sheet(store)
    render_terminal(sheet, Console())
    for job in report.failed:
        print(terminal(f"failed: {job.cell.line}: {job.error} (see {job.log})"))
    print(write_pages(sheet, store, args.root))
    if report.interrupted and args.launcher != "slurm":
        print("interrupted: the same command goes on with the runs that are not done")
    return report.exit_code or (1 if sheet.missing else 0)
