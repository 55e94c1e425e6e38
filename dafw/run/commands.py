"""The commands that train and evaluate, and their exit codes."""

import errno
import math
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from dafw.callbacks import Checkpointing, Stopped, Stopping
from dafw.checkpoints import check_classes, check_finite, check_method, checkpoints
from dafw.errors import TrainingFailure, UserError, sentence, warn
from dafw.escape import csv, terminal
from dafw.files import check_writable, naming_files, remove_unfinished, trouble, user_path, write_atomically
from dafw.lightning_adapter import restoring
from dafw.methods import Method
from dafw.names import quoted
from dafw.nn.distributed import leave_process_group, report_once
from dafw.problems import Problem
from dafw.ranges import check_ranges
from dafw.run import provenance
from dafw.run.artifacts import code_of, collect_result, write_plots
from dafw.run.checks import check_moved_data, check_trainer, refuse_other_run, warn_of_changes, warn_of_validators
from dafw.run.clock import Clock
from dafw.run.config import DafwCLI, RunOptions, parse, resolved_config
from dafw.run.directory import CONFIG, EVIDENCE, SERVED, discard, lock
from dafw.run.estimates import source_evidence
from dafw.run.estimating import estimate, warn_of_shift
from dafw.run.given import run_folder, with_run
from dafw.run.identity import config_hash
from dafw.run.loggers import CsvLog, first_on_machine, rank, track_result, wandb_logger
from dafw.run.predictions import predict_images, predict_targets
from dafw.run.result import RESULT, TEST, Result, read_result, write_result
from dafw.run.sources import Sources, changed_since, merged
from dafw.run.stream_record import served_rows
from dafw.run.threads import THREADS, kept_threads, say_threads, settle_threads
from dafw.run.trained import TrainedRun, fill_from_checkpoint

MISTAKE = 2
"""Exit code for a mistake of the user."""


def main(command: str, arguments: list[str]) -> int:
    """Carries out one of the five commands. :func:`dafw.cli.main` lists the exit codes."""
    code = _main(command, arguments)
    if code != MISTAKE:  # where another rank may still wait for this one
        leave_process_group()
    return code


@kept_threads()
def _main(command: str, arguments: list[str]) -> int:
    """Rank 0 alone reports an error that all ranks have, since the launchers kill it if another rank fails first."""
    cli: DafwCLI | None = None
    try:
        if arguments[-2:] in (["--help", "all"], ["-h", "all"]):
            arguments = arguments[:-1]
        if command == "fit":
            cli = parse(arguments)
            return fit(cli)
        cli = parse(with_run(command, arguments), command)
        return evaluate(command, cli)
    except UserError as error:
        if cli is None and not first_on_machine():  # all have the same configuration, and the first one says it
            return MISTAKE
        return _mistake(sentence(error))
    except Stopped as stopped:
        if rank():
            return 0
        print(f"dafw: {stopped}", file=sys.stderr)
        return 128 + int(stopped.signum)
    except TrainingFailure as error:
        if rank():
            return 0
        return _failed(sentence(error))
    except (
        SystemExit
    ) as ended:  # how Lightning ends after a signal that came before :class:`Stopping` replaced its handlers
        if isinstance(ended, SIGTERMException):
            return 128 + signal.SIGTERM
        if isinstance(ended.__context__, KeyboardInterrupt):
            return 128 + signal.SIGINT
        raise
    except MisconfigurationException as error:
        return _mistake(sentence(error))
    except (OSError, EOFError, RuntimeError) as error:
        if _lost_worker(error):
            return _failed("a process that loaded data was killed; the same command goes on from the last checkpoint")
        if isinstance(error, RuntimeError) and re.search(r"(closed|reset) by peer|remote process", str(error)):
            return _failed("" if rank() else "another rank ended before this one, and says why")
        if said := trouble(error):
            return _mistake(said)
        raise


def _lost_worker(error: BaseException) -> bool:
    """Whether a data loader's process died: PyTorch says so, or a pipe broke inside the loader."""
    if "DataLoader worker (pid" in str(error):
        return True
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ConnectionError | EOFError) and any("torch/utils/data" in file for file in files)


def _mistake(said: str) -> int:
    """Ends every rank with the code of a mistake of the user. The ranks say it once if they all say the same."""
    report_once(said, lambda: print(f"dafw: error: {said}", file=sys.stderr, flush=True))
    return MISTAKE


def _failed(said: str) -> int:
    if said:
        print(f"dafw: error: {said}", file=sys.stderr)
    return 1


def fit(cli: DafwCLI) -> int:
    """Trains or resumes a run, tests it, and writes its result."""
    options: RunOptions = cli.config_init["run"]
    config = resolved_config(cli)
    folder = run_folder(config)
    cli.model.accept_changed_data = options.accept_changed_data
    if options.dir:
        refuse_other_run(folder, config)
    if options.rerun and rank():
        wait_until_discarded(folder)
    if not options.rerun and (result := read_result(folder)) is not None:
        if not rank():
            served = check_moved_data(cli, config, folder)
            warn_of_validators(options.validators, result)
            print(f"done already: {folder / RESULT}")
            warn_of_changes(cli, folder, result, served)
        return 0
    if rank():
        return _fit(cli, config, folder, lambda: None)
    fresh = not folder.exists()
    with lock(folder) as check:
        if options.rerun:
            discard(folder)
        elif read_result(folder) is not None:  # another process finished it in the meantime
            return 0
        try:
            with naming_files():
                return _fit(cli, config, folder, check)
        except UserError:
            if fresh and not cli.model.step:  # nothing was trained, or the first batch failed: leave nothing behind
                check()  # that the directory is still ours
                shutil.rmtree(folder, ignore_errors=True)
            raise


def wait_until_discarded(folder: Path, timeout: float = 60) -> None:
    """Waits until rank 0 has removed a finished run, so that no other rank goes on from its checkpoints.

    Raises:
        UserError: if that does not happen within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while (folder / RESULT).exists():
        if time.monotonic() > deadline:
            raise UserError(f"rank 0 has not removed {folder / RESULT}, so the run cannot be made again")
        time.sleep(0.05)


def _fit(cli: DafwCLI, config: dict[str, Any], folder: Path, check: Callable[[], None]) -> int:
    options: RunOptions = cli.config_init["run"]
    if cli.config_init["ckpt_path"]:
        raise UserError("ckpt_path is for validate, test and predict: fit goes on from the checkpoint in its directory")
    tracker: Any = wandb_logger(
        folder,
        mode=options.wandb,
        project=options.project or type(cli.datamodule).__name__,
        group=type(cli.model).__name__,
        name=folder.name,
        run_id=config_hash(config),
        config=config,
    )
    try:
        train(cli, config, folder, tracker, check)
    except BaseException:
        if tracker is not None:  # otherwise the next run of this process would go on in its W&B run
            tracker.finish(exit_code=1)
        raise
    return 0


def train(cli: DafwCLI, config: dict[str, Any], folder: Path, tracker: Any, check: Callable[[], None]) -> None:
    """Trains or resumes in ``folder``, tests, and writes the result. Pictures and W&B come after it.

    Args:
        cli: holds the method, the data and the options.
        config: the complete configuration.
        folder: the run directory.
        tracker: the W&B logger, or ``None``.
        check: raises an error if the run directory is gone.
    """
    options: RunOptions = cli.config_init["run"]
    method, data = cli.model, cli.datamodule
    log = CsvLog(folder / "metrics.csv", check)
    checkpointing = Checkpointing(folder / "checkpoints", options.checkpoint_every, options.keep_checkpoints, log.sync)
    clock = Clock()
    callbacks = [clock, Stopping(checkpointing), checkpointing]
    trainer = cli.make_trainer(callbacks, [log, *([tracker] if tracker else [])], folder, lines=True)
    check_trainer(trainer, method, options.allow_oracle)
    if trainer.is_global_zero:
        remove_unfinished(folder)
        remove_unfinished(checkpointing.folder)
    newest = next(iter(checkpoints(checkpointing.folder)), None)
    begun = Begun() if newest is None else _begun(newest, method, data.known_names)
    log.forget_after(begun.steps)
    _settle(cli, config, folder, trainer, begun)
    code = code_of(method, data, trainer.callbacks, config)  # type: ignore[attr-defined]
    checkpointing.sources = merged(begun.sources, code)
    if trainer.is_global_zero and (files := changed_since(begun.sources)):
        warn(f"the code changed since {newest}: {', '.join(files)}; the run goes on with the code of now")
    try:
        with restoring(newest):
            trainer.fit(method, datamodule=data, ckpt_path=newest, weights_only=True)
        if newest is None and not method.steps_done:  # Lightning calls no hook of a training without a step
            checkpointing.save(trainer, method)
    except TrainingFailure as error:
        good = next(iter(checkpoints(checkpointing.folder)), None)
        raise type(error)(f"{error}; the last good checkpoint is {good}") from error
    trainer.test(method, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        evidence = source_evidence(method, data)
        result = collect_result(trainer, method, data, config, clock, evidence)
        result = provenance.with_origin(result, checkpointing.sources, data.samples("fit"))
        log.sync()
        if result.stream is not None:
            write_atomically(folder / SERVED, csv(served_rows(method, data)))
        if evidence is not None:
            evidence.write(folder / EVIDENCE)
        write_result(result, folder / RESULT)
        pictures = write_plots(method, data, folder, result) if options.plots else []
        if tracker is not None:
            track_result(tracker, folder, result, pictures)
        _print_targets(result)
        _print_end(folder, clock)


class Begun(NamedTuple):
    """What a run that goes on has begun with: its steps so far, its number of threads, and its code."""

    steps: int = -1
    threads: int | None = None
    sources: Sources = {}


def _begun(path: Path, method: Method, classes: Sequence[str]) -> Begun:
    """What a checkpoint says from which a training can go on."""
    content = check_method(path, type(method), to_go_on=True)
    check_classes(content["dafw"], path, classes, method.accept_changed_data)
    check_finite(content["state_dict"], path, (name for name, _ in method.named_parameters()))
    check_ranges(f"{path}: run", content["run"], {"threads": THREADS})
    return Begun(content["dafw"]["steps"], content["run"]["threads"], content["run"]["sources"])


def _settle(cli: DafwCLI, config: dict[str, Any], folder: Path, trainer: Any, begun: Begun) -> None:
    """Gives the run its number of threads, and writes the configuration, which names it."""
    given, before = cli.config_init["run"].threads, torch.get_num_threads()
    number = settle_threads(given, begun.threads, trainer.world_size, trainer.num_devices)
    config["run"]["threads"] = number
    if trainer.is_global_zero:
        if begun.threads is not None:
            say_threads(given, before, number)
        write_atomically(folder / CONFIG, quoted(yaml.safe_dump(config, sort_keys=False)))


def _print_targets(result: Result) -> None:
    """A line for each target: its metric, and why that does not exist if it does not."""
    for name in result.target:
        reason = f" ({result.undefined_reason[name]})" if name in result.undefined_reason else ""
        value = result.test.get(name, {}).get(result.metric, math.nan)
        print(terminal(f"{name}: {result.metric} {value:.4f}{reason}"))
    if result.stream is not None and (mean := result.stream.mean):
        served, start = (f"{100 * mean[name]:.1f} %" for name in ("error", "start_error"))
        print(f"stream: error {served}, start model {start} (means over {len(result.stream.domains)} domains)")


def _print_end(folder: Path, clock: Clock) -> None:
    """How long the run took, what to do with it next, and where its result is."""
    seconds = clock.now()
    print(f"done in {seconds['total']:.0f} s, of which {seconds['train']:.0f} s of training")
    print(terminal(f"next: dafw predict {shlex.quote(str(folder))}"))
    print(folder / RESULT)


def evaluate(command: str, cli: DafwCLI) -> int:
    """Carries out ``validate``, ``test``, ``predict`` or ``estimate`` with a checkpoint.

    ``test`` writes a result, as ``fit`` does: into ``test.json`` of the run directory, or into ``--output``.
    """
    setting = cli.model.setting
    if command == "validate" and setting.streams_target:
        raise UserError(f"a {setting.name} run has no validation: dafw test scores what its stream has served")
    run = fill_from_checkpoint(cli, command)
    folder, path, content, config = run
    if command == "predict":
        predict(cli, run)
        return 0
    if command == "estimate":
        estimate(cli, run)
        return 0
    if command == "test" and (output := cli.config_init["output"]):
        check_writable(user_path(output))
    clock = Clock()
    trainer = cli.make_trainer([clock, Stopping()], [], folder, lines=True)
    getattr(trainer, command)(cli.model, datamodule=cli.datamodule, verbose=False)
    for name, value in sorted(trainer.callback_metrics.items()) if trainer.is_global_zero else ():
        print(terminal(f"{name.partition('/dataloader_idx')[0]:<40} {float(value):.4f}"))
    if command == "test" and trainer.is_global_zero:
        for name in (one for one in cli.datamodule.target if one not in cli.datamodule.tested_targets):
            print(terminal(f"{name}: not tested, since it has no labels"))
        evidence = source_evidence(cli.model, cli.datamodule)
        result = collect_result(trainer, cli.model, cli.datamodule, config, clock, evidence)
        result = _of_checkpoint(result, content, path)
        code = code_of(cli.model, cli.datamodule, trainer.callbacks, config)  # type: ignore[attr-defined]
        result = provenance.with_origin(result, code, content["dafw"]["samples"])
        write_test(result, folder, cli.config_init["output"])
    return 0


def predict(cli: DafwCLI, run: TrainedRun) -> None:
    """Predicts the targets, or the files that ``--images`` names, with the method as it is."""
    given, problem = cli.config_init, cli.model.problem
    if type(problem).write_predictions is Problem.write_predictions:
        raise UserError(
            f"{type(problem).__name__} does not say how predictions are written: it must define write_predictions"
        )
    if given["images"] and given["split"]:
        raise UserError("split is a part of a target: give --images or --split, not both")
    output = user_path(given["output"] or problem.predictions_name)
    problem.check_output(output)
    if given["images"]:
        cli.use_one_device()
    else:
        cli.datamodule.predict_split = given["split"]
    trainer = cli.make_trainer([Stopping()], [], run.folder, lines=True)
    if given["images"]:
        predict_images(trainer, cli.model, cli.datamodule, given["images"], output)
    else:
        predict_targets(trainer, cli.model, cli.datamodule, output)
    if trainer.is_global_zero:
        warn_of_shift(cli.model, run)


def write_test(result: Result, folder: Path, output: str | None) -> None:
    """Writes what ``dafw test`` found, and prints the file's name.

    A run directory that may not be written, as in an archive, costs a warning: the metrics are printed already.
    """
    path = user_path(output or folder / TEST)
    try:
        write_result(result, path)
    except OSError as error:
        if output or error.errno not in (errno.EROFS, errno.EACCES):
            raise
        warn(f"{trouble(error)}: give --output to keep these numbers in a file")
    else:
        print(path)


def _of_checkpoint(result: Result, content: dict[str, Any], path: Path) -> Result:
    """Adds what the checkpoint knows to the result of its test: the steps, and whether target labels trained it."""
    held = content["dafw"]
    oracle = result.oracle or not set(result.target).isdisjoint(held["labelled"])
    forms = held.get("fast_forms", result.fast_forms)
    return replace(result, checkpoint=str(path), steps=held["steps"], oracle=oracle, fast_forms=forms)
