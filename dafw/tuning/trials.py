"""Makes the trials of a study: one after the other here, or in several processes that share the study's file."""

import math
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any

from dafw.errors import TrainingFailure, UserError, sentence
from dafw.escape import terminal
from dafw.run.directory import run_directory
from dafw.run.entry import execute
from dafw.run.identity import ORACLE
from dafw.run.pool import POLL, ProcessPool, limit_threads, signals
from dafw.run.result import Result, read_result
from dafw.run.worker import Order, Outcome, attempt
from dafw.tuning.reverse import OBJECTIVE as REVERSE
from dafw.tuning.reverse import predict_target, reverse_score, reversed_config
from dafw.tuning.space import place, written
from dafw.tuning.study import Plan, Study, Taken


class Interrupted(Exception):
    """A signal ended a trial's run. The run can go on from its checkpoint."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def configure(plan: Plan, params: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The complete configuration of one run of a trial."""
    config = place(plan.config, params)
    config["seed_everything"] = config["data"]["init_args"]["seed"] = seed
    config["trainer"]["devices"] = 1
    return config


def work(plan: Plan, study: Study) -> int:
    """Makes trials until there are enough.

    Returns:
        0, or 128 + n if signal n came.
    """
    while (taken := study.take(plan)) is not None:
        try:
            run_trial(plan, study, taken)
        except Interrupted as interrupted:
            study.give_back(taken)
            return 128 + interrupted.signum
        except BaseException:
            study.give_back(taken)
            raise
    return 0


def run_trial(plan: Plan, study: Study, taken: Taken) -> None:
    """Makes the runs of one trial, and tells the study what they found. If a run fails, the trial fails."""
    started = time.monotonic()
    scores: dict[str, float] = {}
    folders: dict[str, str] = {}
    for seed in plan.seeds:
        config = configure(plan, taken.params, seed)
        folder = run_directory(config, plan.root)
        folders[str(seed)] = str(folder)
        outcome = make_run(config, folder, plan.root)
        try:
            if outcome.status == "failed":
                raise UserError(outcome.error)
            result = read_result(folder)
            if result is None:
                raise UserError("it ended without a result")
            refuse_labels(result, plan)
            if plan.objective == REVERSE:
                scores[str(seed)] = go_back(config, folder, plan)
            else:
                scores[str(seed)] = objective(result, plan)
        except UserError as error:
            study.tell(taken, None, runs=folders, error=str(error))
            print(f"trial {taken.number} failed: {brief(str(error))}  ({folder})", flush=True)
            return
    value, seconds = fmean(scores.values()), time.monotonic() - started
    study.tell(taken, value, runs=folders, scores=scores)
    mark = " [ORACLE]" if plan.labels else ""
    print(
        f"trial {taken.number}{mark}: {plan.objective} {value:.4g}  {shown(taken.params)}  {seconds:.0f} s", flush=True
    )


def go_back(config: Mapping[str, Any], folder: Path, plan: Plan) -> float:
    """Makes the second run of reverse validation, and returns its score.

    Args:
        config: of the first run.
        folder: the directory of the first run, which is finished.
        plan: of the study.

    Raises:
        UserError: if the target cannot be predicted, or the second run fails.
        Interrupted: if a signal ended it.
    """
    back = reversed_config(config, predict_target(folder))
    place = run_directory(back, plan.root)
    outcome = make_run(back, place, plan.root)
    result = read_result(place)
    if outcome.status == "failed" or result is None:
        raise UserError(f"the way back ({place}): {outcome.error or 'it ended without a result'}")
    return reverse_score(result)


def brief(error: str) -> str:
    """The first 150 characters of an error. The run's log has all of it."""
    return shorten(terminal(error), 150, placeholder=" ...")


def shown(params: Mapping[str, Any]) -> str:
    """Parameters on one line, for example ``model.lr=0.01234 model.entropy=true``."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else written(value) for key, value in params.items()}
    return terminal(" ".join(f"{key}={text}" for key, text in texts.items()))


def make_run(config: dict[str, Any], folder: Path, root: Path) -> Outcome:
    """Makes or resumes one run. Its output goes into its directory. Waits if another process makes the same run.

    Raises:
        Interrupted: if a signal ended it.
    """
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from dafw.callbacks import Stopped

    signums: list[int] = []

    def noting_signals(config: dict[str, Any], root: Path) -> None:
        try:
            execute(config, root)
        except TrainingFailure as error:
            raise UserError(str(error)) from error  # the log needs no traceback
        except Stopped as stopped:
            signums.append(stopped.signum)
            raise
        except (KeyboardInterrupt, SIGTERMException) as error:
            signums.append(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            raise
        except SystemExit as ended:  # how Lightning ends after Ctrl-C
            if isinstance(ended.__context__, KeyboardInterrupt):
                signums.append(signal.SIGINT)
            raise

    while (outcome := attempt(noting_signals, Order(config, folder, root))).status == "busy":
        time.sleep(POLL)
    if signums:
        raise Interrupted(signums[0])
    return outcome


def refuse_labels(result: Result, plan: Plan) -> None:
    """Checks that target labels took no part in a run of a study that is without them.

    Raises:
        UserError: if they trained the run or a callback monitored what they say, and the plan has no such labels.
    """
    monitors = [name for name in result.monitors if name.startswith(ORACLE)]
    if not plan.labels and (result.oracle or monitors):
        raise UserError("target labels took part in its run, and the study is one without")


def objective(result: Result, plan: Plan) -> float:
    """The objective of a run, at its last validation or at its best one; of a stream, what was served on it.

    Raises:
        UserError: if it has none that is finite.
    """
    if result.setting.stream:
        served = fmean(result.test.get(name, {}).get(result.metric, math.nan) for name in result.target)
        if not math.isfinite(served):
            raise UserError(f"{', '.join(result.target)} have no labels, which --objective {plan.objective} needs")
        return served
    if plan.objective == "oracle":
        values = [one.oracle.get(result.metric, math.nan) for one in result.history]
    else:
        values = [one.validators.get(plan.objective, math.nan) for one in result.history]
    finite = [value for value in values if math.isfinite(value)]
    if plan.select == "best" and finite:
        return max(finite) if plan.higher_is_better else min(finite)
    if plan.select == "best" or not values or not math.isfinite(values[-1]):
        at = "at any" if plan.select == "best" else "at the last"
        raise UserError(f"{plan.objective} has no finite value {at} of {len(values)} validations")
    return values[-1]


# ---- several processes


def serve(pipe: connection.Connection, environment: dict[str, str], plan: Plan) -> None:
    """Makes trials in a worker process until there are enough, or SIGTERM comes. The pipe is not used."""
    limit_threads(environment)
    try:
        sys.exit(work(plan, Study(plan.study, plan)))
    except UserError as error:
        print(f"dafw: error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)


def work_together(plan: Plan, study: Study, workers: int) -> int:
    """Makes trials in several processes until there are enough.

    A process that dies of its trial is replaced. Ctrl-C and SIGTERM are passed on, and each process saves a checkpoint.

    Returns:
        0, 1 if the processes ended before there were enough trials, or 130 after a signal.
    """
    with signals() as stop:
        pool = ProcessPool(serve, (plan,), workers, stop)
        try:
            while not pool.full:
                pool.start()
            while pool.workers:
                ready = pool.wait()
                if ready.stopped:
                    return 130
                for worker in ready.ended:
                    code = pool.remove(worker)
                    if code and study.reclaim(crashed=True):
                        print(f"a process died ({code}) in its trial; another takes its place", flush=True)
                        pool.start()
        finally:
            pool.close()
            study.reclaim()
    return 0 if sum(trial.state.is_finished() for trial in study.trials()) >= plan.trials else 1
