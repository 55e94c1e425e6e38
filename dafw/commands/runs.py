"""``dafw runs``: the runs of a folder, and what differs between two of them. It needs no torch."""

import argparse
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import yaml

from dafw.errors import UserError
from dafw.escape import terminal
from dafw.files import user_path
from dafw.names import quoted
from dafw.plain_yaml import load_yaml
from dafw.run.directory import CONFIG, began, is_running
from dafw.run.result import TEST, BrokenResult, Result, read_result, read_result_file

State = Literal["done", "running", "interrupted", "tested"]


@dataclass(frozen=True)
class Run:
    """What a run directory says.

    Attributes:
        folder: the run directory.
        state: ``done`` with a result; ``running``; ``interrupted`` if the same command would go on with it; ``tested``
            if nothing was trained in it.
        method: name of the method.
        task: the transfer, as in ``mnist->usps``.
        seed: its seed.
        steps: steps done, as far as the checkpoints tell.
        result: of a run that is done, or of a test.
    """

    folder: Path
    state: State
    method: str
    task: str
    seed: str
    steps: int
    result: Result | None = None

    @property
    def number(self) -> str:
        """The run's metric, the mean over the targets. Labels of the targets alone give it."""
        if self.result is None:
            return ""
        values = [self.result.test.get(name, {}).get(self.result.metric) for name in self.result.target]
        found = [value for value in values if value is not None]
        trained = " (trained on target labels)" if self.result.oracle else ""
        return f"{self.result.metric} {fmean(found):.4f}{trained}" if found else "no number"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``dafw runs``."""
    parser.add_argument("--root", type=user_path, default=Path("runs"), help="folder of the run directories (runs)")
    for name in ("method", "task", "seed"):
        parser.add_argument(f"--{name}", help=f"only runs of this {name}")
    state = parser.add_mutually_exclusive_group()
    for name in ("done", "interrupted"):
        state.add_argument(
            f"--{name}", dest="state", action="store_const", const=name, help=f"only runs that are {name}"
        )
    actions = parser.add_subparsers(dest="action", metavar="diff")
    diff = actions.add_parser("diff", help="the keys of config.yaml that differ between two runs, and their numbers")
    diff.add_argument("runs", nargs=2, type=user_path, metavar="RUN", help="a run directory")


def main(args: argparse.Namespace) -> int:
    """Carries out a parsed ``dafw runs`` command, and returns 0.

    Raises:
        UserError: if a folder is missing, or a configuration cannot be read.
    """
    if args.action == "diff":
        print("\n".join(map(terminal, difference(*args.runs))))
        return 0
    if not args.root.is_dir():
        raise UserError(f"there is no folder {args.root}: --root names the folder of the run directories")
    found = [run for folder in sorted(args.root.iterdir()) if (run := read_run(folder)) is not None]
    wanted = {name: value for name in ("method", "task", "seed", "state") if (value := getattr(args, name)) is not None}
    shown = [run for run in found if all(getattr(run, name) == value for name, value in wanted.items())]
    for run in shown:
        steps = f"step {run.steps}"
        print(
            terminal(f"{run.state:<12} {steps:<11} {run.method:<14} {run.task}  seed {run.seed}  {run.number}".rstrip())
        )
        print(terminal(f"{'':<12} {run.folder}"))
    print(f"{len(shown)} of {len(found)} runs")
    return 0


def read_run(folder: Path) -> Run | None:
    """What a folder says of its run; ``None`` if no run is in it."""
    if not ((folder / CONFIG).is_file() or (folder / TEST).is_file()):
        return None
    result, tested, config = None, None, {}
    with suppress(BrokenResult):
        result = read_result(folder)
    if result is not None:
        return Run(folder, "done", result.method, result.task, str(result.seed), result.steps, result)
    if not began(folder):
        with suppress(BrokenResult):
            tested = read_result_file(folder / TEST)
    if tested is not None:
        return Run(folder, "tested", tested.method, tested.task, str(tested.seed), tested.steps, tested)
    with suppress(UserError):  # a file that a power cut emptied hides no other run
        config = read_config(folder)
    model, data = config.get("model") or {}, (config.get("data") or {}).get("init_args") or {}
    sides = [data.get(side) or [] for side in ("source", "target")]
    task = "->".join(",".join(map(str, side if isinstance(side, list) else [side])) for side in sides)
    state: State = "running" if is_running(folder) else "interrupted" if began(folder) else "tested"
    steps = [
        int(match[1])
        for path in folder.glob("checkpoints/*")
        if (match := re.fullmatch(r"step=(\d+)\.ckpt", path.name))
    ]
    method = str(model.get("class_path", "")).rpartition(".")[2]
    return Run(folder, state, method, task, str(config.get("seed_everything", "")), max(steps, default=0))


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a run directory.

    Raises:
        UserError: if it cannot be read.
    """
    path = folder / CONFIG
    try:
        found = load_yaml(quoted(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no run directory: it has no {CONFIG}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML") from error
    return found if isinstance(found, dict) else {}


def difference(one: Path, other: Path) -> list[str]:
    """Lines: the keys of the two configurations that differ, then the numbers of the two tests."""
    configs = [dict(flat(read_config(folder))) for folder in (one, other)]
    lines = [f"A: {one}", f"B: {other}"]
    for key in sorted(configs[0].keys() | configs[1].keys()):
        first, second = (config.get(key, "not there") for config in configs)
        if first != second:
            lines.append(f"{key}: {first} | {second}")
    results = [read_result(folder) for folder in (one, other)]
    tests = [{} if found is None else found.test for found in results]
    for domain in sorted(tests[0].keys() | tests[1].keys()):
        for name in sorted(tests[0].get(domain, {}).keys() | tests[1].get(domain, {}).keys()):
            first, second = (test.get(domain, {}).get(name) for test in tests)
            shown = ["-" if value is None else f"{value:.4f}" for value in (first, second)]
            gap = "" if first is None or second is None else f"  ({second - first:+.4f})"
            lines.append(f"test {domain} {name}: {shown[0]} | {shown[1]}{gap}")
    lines += [f"{folder} has no result" for folder, found in zip((one, other), results, strict=True) if found is None]
    return lines


def flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by their keys, joined by points and without ``init_args``."""
    if not isinstance(value, dict) or not value:
        return [(key, value)]
    return [
        pair
        for name, item in value.items()
        for pair in flat(item, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    ]
