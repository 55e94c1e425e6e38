"""``dafw tune`` and ``dafw tune show``."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dafw.errors import UserError, choose
from dafw.files import user_path, write_atomically
from dafw.run.result import read_result
from dafw.tuning.held_out import OBJECTIVE, held_out_domains
from dafw.tuning.reverse import OBJECTIVE as REVERSE
from dafw.tuning.reverse import check_reversible
from dafw.tuning.space import Dimension, locate, method_space, overlay, parse_space, place, whole_space
from dafw.tuning.study import Plan, Study, load_optuna
from dafw.tuning.trials import brief, shown, work, work_together

if TYPE_CHECKING:
    from dafw.run.config import DafwCLI

SHOWN = 5
UNSEARCHED = (
    "data.oracle",
    "data.pseudo_labels",
    "data.source",
    "data.target",
    "model.checkpoint",
    "trainer.callbacks",
)
"""Keys that must be the same in all trials of a study, since they say what it is about or which labels it uses."""
HELD_OUT_HELP = (
    "labelled domains that are no targets, whose stream the objective held_out scores (held-out corruptions)"
)
SPACE_HELP = "KEY=LOW:HIGH[:log|:linear], KEY=A,B,C or a YAML file of these: added to the method's search space"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``dafw tune`` to those of ``dafw fit``."""
    parser.usage = (
        "dafw tune --objective VALIDATOR --study FILE [options below] [options of dafw fit]\n"
        "       dafw tune show FILE [--allow-oracle]"
    )
    parser.allow_abbrev = False
    parser.add_argument(
        "--objective", required=True, help="source_<metric>, im, entropy, snd, dev; reverse; held_out; or oracle"
    )
    parser.add_argument(
        "--study", type=user_path, required=True, help="the study's SQLite file; an existing one goes on"
    )
    parser.add_argument("--trials", type=_positive, default=20, help="trials that the study shall have in total (20)")
    parser.add_argument("--select", choices=("last", "best"), default="last", help="the validation that counts (last)")
    parser.add_argument("--seeds", type=int, nargs="+", help="a trial is a run per seed, its objective their mean")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="DOMAIN", help=HELD_OUT_HELP)
    parser.add_argument("--space", action="append", default=[], metavar="SPACE", help=SPACE_HELP)
    parser.add_argument("--workers", type=_positive, default=1, help="processes that make trials side by side (1)")
    parser.add_argument("--root", type=user_path, help="folder of the run directories (runs)")
    parser.add_argument("--sampler-seed", type=int, default=0, help="seed of the sampler (0)")
    parser.add_argument("--allow-oracle", action="store_true", help="let target labels choose, and print what they say")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def main(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Carries out ``dafw tune``.

    Args:
        parser: with the options of :func:`add_arguments`.
        arguments: behind ``tune``.

    Returns:
        0; 1 if no trial has an objective; 128 + n after signal n.

    Raises:
        UserError: for what the user can mend.
    """
    if arguments[:1] == ["show"]:
        return _show(type(parser)(prog="dafw tune show"), arguments[1:])
    args, rest = parser.parse_known_args(arguments)
    load_optuna()
    plan = make_plan(args, rest)
    study = Study(plan.study, plan)
    study.reclaim()
    print(f"searching {', '.join(map(str, plan.space))}", flush=True)
    code = work_together(plan, study, args.workers) if args.workers > 1 else work(plan, study)
    if code > 1:
        print(f"interrupted: the same command goes on with {plan.study}")
        return code
    print_study(study, args.allow_oracle)
    best = write_best(plan, study)
    if best is not None:
        print(f"{best}: the best trial's values, for dafw fit --config")
    return code or (0 if best else 1)


def _show(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("study", type=user_path, help="the study's file")
    parser.add_argument("--allow-oracle", action="store_true", help="print what target labels say of the best trials")
    args = parser.parse_args(arguments)
    print_study(Study(args.study), args.allow_oracle)
    return 0


# ---- before the first trial


def make_plan(args: argparse.Namespace, rest: list[str]) -> Plan:
    """The plan of the command, checked as far as possible before anything is trained.

    Args:
        args: the options of ``dafw tune``.
        rest: those of ``dafw fit``.

    Raises:
        UserError: for a mistake in any of them.
    """
    given = [dimension for space in args.space for dimension in parse_space(space)]
    from dafw.run.config import parse, resolved_config

    cli = parse(rest)
    if args.held_out and args.objective != OBJECTIVE:
        raise UserError(f"--held-out is for --objective {OBJECTIVE}")
    if cli.model.setting.streams_target and args.objective == OBJECTIVE:
        rest = [*rest, f"--data.target={json.dumps(held_out_domains(cli.datamodule, args.held_out))}"]
        cli = parse(rest)
    config = resolved_config(cli)
    for key, value in (("run.dir", config["run"]["dir"]), ("ckpt_path", config["ckpt_path"])):
        if value is not None:
            raise UserError(f"{key} cannot be given: each trial has a directory of its own")
    seeds = tuple(args.seeds or [int(config["seed_everything"])])
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds must name each seed once, not {' '.join(map(str, seeds))}")
    if args.objective == REVERSE:
        check_reversible(cli.model, cli.datamodule, args.select)
    higher_is_better = _direction(cli, args.objective, args.allow_oracle)
    labels = _labels(cli, args.objective)
    if labels and not args.allow_oracle:
        raise UserError(f"{labels}: say --allow-oracle if that is meant")
    own = method_space(type(cli.model).search_space)
    space = whole_space(own, given, _fixed(rest, [dimension.key for dimension in (*own, *given)]))
    config = place(config, {})
    _check_space(cli, config, space)
    _check_run(cli)
    root = args.root or user_path(config["run"]["root"])
    config["run"]["root"] = str(root)
    return Plan(
        study=args.study,
        root=root,
        config=config,
        space=space,
        objective=args.objective,
        select=args.select,
        higher_is_better=higher_is_better,
        seeds=seeds,
        trials=args.trials,
        sampler_seed=args.sampler_seed,
        labels=labels,
    )


def _direction(cli: "DafwCLI", objective: str, allow_oracle: bool) -> bool:
    """Whether a higher objective is better."""
    from dafw.run.checks import directions

    streams = cli.model.setting.streams_target
    if streams and objective not in (OBJECTIVE, "oracle"):
        raise UserError(
            f"a {cli.model.setting.name} run has no validation, which the objective of a search would read: take "
            f"--objective {OBJECTIVE}, which scores what is served on other domains"
        )
    if (streams and objective == OBJECTIVE) or objective == REVERSE:
        return True
    if objective == "oracle":
        if not allow_oracle:
            other = OBJECTIVE if streams else "a validator"
            raise UserError(f"oracle is decided by target labels: take {other}, or say --allow-oracle")
        return True
    found = directions(cli.model)
    return found[choose("objective", objective, [*found, REVERSE, *(["oracle"] if allow_oracle else [])])]


def _labels(cli: "DafwCLI", objective: str) -> str:
    """How target labels take part; empty if they do not."""
    if objective == "oracle":
        return "target labels decide the objective"
    if cli.datamodule.oracle:
        return "the runs train on target labels (data.oracle)"
    if not set(cli.datamodule.target).isdisjoint(cli.model.trained_on):
        return "target labels trained the model that the runs start from"
    if cli.config_init["run"].allow_oracle:
        return "target labels may stop a run or choose its checkpoint (run.allow_oracle)"
    return ""


def _fixed(rest: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The keys among ``keys`` that have a value on the command line."""
    said = {argument.partition("=")[0].replace(".init_args.", ".") for argument in rest if argument.startswith("--")}
    return [key for key in keys if f"--{key}" in said]


def _check_space(cli: "DafwCLI", config: Mapping[str, Any], space: Sequence[Dimension]) -> None:
    """Checks that each key exists and accepts the ends of its range, or its choices."""
    from jsonargparse import ArgumentError

    from dafw.run.config_errors import explain

    for dimension in space:
        located = locate(config, dimension.key)
        if ".".join(word for word in located if word != "init_args") in UNSEARCHED:
            raise UserError(
                f"{dimension.key} cannot be searched: it decides what a study is of, or whose labels it uses"
            )
        if located[-1] in ("seed", "num_classes"):
            raise UserError(f"{dimension.key} cannot be searched: it comes from elsewhere (seeds from --seeds)")
        for value in dimension.ends:
            try:
                cli.parser.parse_object(place(config, {dimension.key: value}))
            except ArgumentError as error:
                raise UserError(f"--space {dimension}: {explain(str(error))}") from error


def _check_run(cli: "DafwCLI") -> None:
    """Checks all that a run would refuse before its first step."""
    from dafw.callbacks import averaging
    from dafw.lightning_adapter import connect
    from dafw.run.checks import check_trainer

    options = cli.config_init["trainer"]
    if options["devices"] not in ("auto", 1, "1", -1) or options["num_nodes"] != 1:
        raise UserError("a trial trains on one device: leave trainer.devices out, and give --workers for several")
    options["devices"] = 1
    trainer = cli.make_trainer([], [], Path())
    if names := averaging(trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(f"no validation is of the weights that {names[0]} averages: leave it out of dafw tune")
    check_trainer(trainer, cli.model, cli.config_init["run"].allow_oracle)
    if connect(trainer, cli.model, cli.datamodule):
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        cli.datamodule.train_dataloader()


# ---- after the last


def print_study(study: Study, allow_oracle: bool) -> None:
    """Prints the best trials, and whether target labels took part."""
    plan, best, trials = study.plan, study.best(), study.trials()
    failed = sum(trial.state.name == "FAIL" for trial in trials)
    when = "served" if plan["objective"] == OBJECTIVE else f"{plan['select']} validation"
    name = f"{plan['objective']} ({when}, {study.study.direction.name.lower()}d"
    name += f", mean of {len(plan['seeds'])} seeds)" if len(plan["seeds"]) > 1 else ")"
    mark = " [ORACLE]" if study.labels else ""
    print(f"{plan['method'].rpartition('.')[2]}{mark}: {len(best)} trials with {name}", end="")
    print("".join(f", {count} {what}" for count, what in _rest(failed, len(trials) - failed - len(best)) if count))
    for rank, trial in enumerate(best[:SHOWN], start=1):
        runs: dict[str, str] = trial.user_attrs.get("runs", {})
        shows_test = allow_oracle and plan["objective"] != OBJECTIVE
        accuracy = f"  target test {_test(runs)}" if shows_test else ""
        print(f"{rank}. trial {trial.number}{mark}  {trial.value:.4g}{accuracy}  {shown(trial.params)}")
        print("".join(f"     {folder}\n" for folder in runs.values()), end="")
    for trial in [trial for trial in trials if trial.state.name == "FAIL"][:SHOWN]:
        print(f"failed: trial {trial.number}: {brief(trial.user_attrs.get('error', 'its process died'))}")
    print(_verdict(study.labels))
    if plan["objective"] == OBJECTIVE:
        print(f"the labels of {', '.join(plan['data.target'])} chose, which are no targets")
    if allow_oracle and not study.labels:
        print("target test: what target labels say of trials that were chosen without them; to choose by it is a leak")


def _rest(failed: int, unfinished: int) -> list[tuple[int, str]]:
    return [(failed, "failed"), (unfinished, "unfinished")]


def _verdict(labels: str) -> str:
    return f"ORACLE: {labels}" if labels else "no target label was used to train a trial or to choose one"


def _test(runs: Mapping[str, str]) -> str:
    """The mean test metric of the targets over finished runs, as text."""
    values = []
    for folder in runs.values():
        result = read_result(Path(folder))
        if result is None:
            return "unknown"
        values += [result.test[name][result.metric] for name in result.target]
    mean = sum(values) / len(values) if values else math.nan
    return f"{100 * mean:.2f} %"


def best_file(study: Path) -> Path:
    """The file of the best trial's values, for example ``dann.best.yaml`` beside ``dann.db``."""
    return study.with_name(f"{study.stem}.best.yaml")


def write_best(plan: Plan, study: Study) -> Path | None:
    """Writes the best trial's values as an overlay for other configurations; ``None`` if no trial has an objective."""
    best = study.best()
    if not best:
        return None
    head = f"# {plan.objective} {best[0].value}: trial {best[0].number} of {len(study.trials())}\n"
    head += f"# {_verdict(study.labels)}\n"
    head += "".join(f"# {folder}\n" for folder in best[0].user_attrs.get("runs", {}).values())
    path = best_file(plan.study)
    write_atomically(path, head + yaml.safe_dump(overlay(plan.config, best[0].params), sort_keys=False))
    return path
