"""The study: an SQLite file that Optuna writes, shared by processes that take turns.

SQLite writes a transaction whole or not at all, even if its process is killed, and other tools can read the file. But
several writers would find it locked, and two could take the same trial. So a process that reads and then writes holds a
lock of the operating system, which ends with the process. A process also holds a lock for the trial that it works on. A
running trial whose lock nobody holds was lost, and is tried again with its parameters.
"""

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dafw.errors import UserError
from dafw.files import Busy, hold, locked
from dafw.run.identity import INCIDENTAL, changing_callbacks
from dafw.tuning.space import Dimension, locate, written

if TYPE_CHECKING:
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

NAME = "dafw"
CRASHES = 2
"""Crashes of a process, for example for lack of memory, after which its trial has failed."""


def load_optuna() -> Any:
    """Imports Optuna, and silences its log.

    Raises:
        UserError: if it is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise UserError('dafw tune needs Optuna: pip install "dafw[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # constant_liar, before 5
    return optuna


@dataclass(frozen=True)
class Plan:
    """What a study searches, and how. It is the same for all its trials.

    Attributes:
        study: the study's file.
        root: folder of the run directories.
        config: a complete configuration. The trials vary it.
        space: the searched keys.
        objective: the validator, or ``oracle``.
        select: the validation that counts: ``last`` or ``best``.
        higher_is_better: whether a higher objective is better.
        seeds: seeds of the runs of each trial. The objective is their mean.
        trials: number of trials that the study shall have.
        sampler_seed: seed of the sampler.
        labels: how target labels take part in a run or in the objective; empty if they do not.
    """

    study: Path
    root: Path
    config: dict[str, Any]
    space: tuple[Dimension, ...]
    objective: str
    select: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    trials: int
    sampler_seed: int = 0
    labels: str = ""

    def description(self) -> dict[str, Any]:
        """What must be the same for a study to go on: all that determines the numbers of its runs, and the search."""
        kept = {key: value for key, value in self.config.items() if key in ("model", "data", "trainer")}
        fixed = {".".join(key): value for key, value in _leaves(kept)}
        dropped = {".".join(locate(self.config, dimension.key)) for dimension in self.space}
        dropped |= {"data.init_args.seed", "model.init_args.num_classes"}
        dropped |= {f"trainer.{name}" for name in INCIDENTAL["trainer"]}
        dropped |= {f"data.init_args.{name}" for name in INCIDENTAL["data"]}
        parts = {
            "method": fixed.pop("model.class_path"),
            "objective": self.objective,
            "select": self.select,
            "seeds": list(self.seeds),
            "space": " ".join(map(str, self.space)),
            "sampler seed": self.sampler_seed,
            "labels": self.labels,
        }
        if callbacks := changing_callbacks(self.config):
            parts["callbacks"] = callbacks
        return parts | {key.replace(".init_args", ""): v for key, v in fixed.items() if key not in dropped}


def _leaves(level: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in level.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


@dataclass
class Taken:
    """A trial that this process works on."""

    trial: "Trial"
    params: dict[str, Any]
    lock: FileLock

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.trial.number


class Study:
    """An open study file.

    Args:
        path: the file.
        plan: what the study must be of; made new if there is no file. ``None`` only reads.

    Raises:
        UserError: if there is nothing to read, the file is no study of ours, or one of another plan.
    """

    def __init__(self, path: Path, plan: Plan | None = None) -> None:
        self.optuna, self.path = load_optuna(), path
        if plan is None and not path.is_file():
            raise UserError(f"there is no study {path}")
        self.locks = path.with_name(f".{path.name}.locks")
        try:
            if plan is None:
                self.study = self._open(None)
            else:
                self.locks.mkdir(parents=True, exist_ok=True)
                with self.turn():
                    self.study = self._open(plan)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        except Exception as error:  # of the database, or of Optuna when another version of it wrote the file
            raise UserError(f"{path} cannot be read as a study: {str(error).splitlines()[0]}") from error

    def _open(self, plan: Plan | None) -> "OptunaStudy":
        url = f"sqlite:///{self.path}"
        storage = self.optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        names = self.optuna.get_all_study_names(storage)
        if names and names != [NAME]:
            raise UserError(f"{self.path} holds studies that dafw tune did not make: give another --study")
        if not names and plan is None:
            raise UserError(f"{self.path} holds no study")
        if plan is None:
            study: OptunaStudy = self.optuna.load_study(study_name=NAME, storage=storage)
            return study
        direction = "maximize" if plan.higher_is_better else "minimize"
        study = self.optuna.create_study(study_name=NAME, storage=storage, direction=direction, load_if_exists=True)
        asked = plan.description()
        held = study.user_attrs.get("plan")
        if held is None:
            study.set_user_attr("plan", asked)
        else:
            refuse_other(self.path, held, asked)
        return study

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the study while the block runs, so that no other process reads or writes it."""
        with locked(self.locks / "turn"):
            yield

    # ---- what was found

    @property
    def plan(self) -> dict[str, Any]:
        """The description of its plan, see :meth:`Plan.description`."""
        return dict(self.study.user_attrs.get("plan") or {})

    @property
    def labels(self) -> str:
        """How target labels take part; empty if they do not."""
        return str(self.plan.get("labels") or "")

    def trials(self) -> "list[FrozenTrial]":
        """All trials, without the lost ones that are tried again."""
        trials = self.study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("retry_of") for trial in trials}
        return [trial for trial in trials if trial.number not in again]

    def best(self) -> "list[FrozenTrial]":
        """The trials with an objective, the best first."""
        done = [trial for trial in self.trials() if trial.state.name == "COMPLETE"]
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1
        return sorted(done, key=lambda trial: sign * trial.values[0])

    # ---- work

    def take(self, plan: Plan) -> Taken | None:
        """Takes the next trial: a lost one again, or a new one. ``None`` if there are enough.

        The parameters of a new trial depend on the sampler's seed, on the number of trials and on what the finished
        trials found. They do not depend on the process. So an interrupted study goes on as if nothing had happened.
        """
        from numpy.random import SeedSequence

        with self.turn():
            begun = sum(trial.state.name != "WAITING" for trial in self.trials())
            if begun >= plan.trials:
                return None
            seed = int(SeedSequence([plan.sampler_seed, begun]).generate_state(1)[0])
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = self.study.ask()
            lock = hold(self.locks / str(trial.number))
            return Taken(trial, {dimension.key: suggest(trial, dimension) for dimension in plan.space}, lock)

    def tell(self, taken: Taken, value: float | None, **notes: Any) -> None:
        """Ends a trial, with notes of what it found. A trial without an objective has failed."""
        with self.turn():
            for name, note in notes.items():
                taken.trial.set_user_attr(name, note)
            if value is None:
                self.study.tell(taken.trial, state=self.optuna.trial.TrialState.FAIL)
            else:
                self.study.tell(taken.trial, value)
            self._release(taken.lock)

    def give_back(self, taken: Taken) -> None:
        """Gives an interrupted trial back, so that it is tried again."""
        with self.turn():
            self._retry(self._frozen(taken.number))
            self._release(taken.lock)

    def reclaim(self, crashed: bool = False) -> int:
        """Tries each trial again that lost its process.

        Args:
            crashed: whether the process ended by itself. After :data:`CRASHES` such tries the trial has failed.

        Returns:
            The number of such trials.
        """
        found = 0
        with self.turn():
            for trial in self.trials():
                if trial.state.name != "RUNNING":
                    continue
                try:
                    lock = hold(self.locks / str(trial.number), wait=False)
                except Busy:
                    continue
                found += 1
                crashes = int(trial.user_attrs.get("crashes", 0)) + crashed
                if crashes < CRASHES:
                    self._retry(trial, crashes)
                else:
                    self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
                self._release(lock)
        return found

    def _frozen(self, number: int) -> "FrozenTrial":
        return self.study.get_trials(deepcopy=False)[number]

    def _retry(self, trial: "FrozenTrial", crashes: int | None = None) -> None:
        """Enqueues the new try first. If the process is killed in between, the lost trial already has its new try."""
        count = int(trial.user_attrs.get("crashes", 0)) if crashes is None else crashes
        self.study.enqueue_trial(dict(trial.params), user_attrs={"retry_of": trial.number, "crashes": count})
        self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)

    def _release(self, lock: FileLock) -> None:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def suggest(trial: "Trial", dimension: Dimension) -> Any:
    """The trial's value of one dimension."""
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.whole:
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


def refuse_other(path: Path, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Checks that a file holds no other study.

    Raises:
        UserError: naming what differs from what is asked for.
    """
    keys: Sequence[str] = [*asked, *(key for key in held if key not in asked)]
    different = [key for key in keys if held.get(key) != asked.get(key)]
    if different:
        named = [f"{key} {written(held.get(key))}, not {written(asked.get(key))}" for key in different[:3]]
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise UserError(f"{path} is the study of {'; '.join(named)}{more}: give another --study")
