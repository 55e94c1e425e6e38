"""The result of a run: its fields, and the one place that writes and reads them. It needs no torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dafw.errors import UserError
from dafw.files import trouble, write_atomically
from dafw.run.stream_result import StreamResult
from dafw.samples import Samples

SCHEMA_VERSION = 2
"""Version of the fields of :class:`Result`. A field that older readers may pass over, and that older results may lack,
makes no other version."""
RESULT = "result.json"
"""The result of a finished run. Its presence means that the run is done."""
TEST = "test.json"
"""The result of ``dafw test``."""

Metrics = Mapping[str, Mapping[str, float]]
"""Metrics by domain and name."""


class BrokenResult(UserError):
    """A result file that cannot be used.

    Args:
        message: why, with the file's name.
        damaged: whether the file holds no result at all. Then nothing is lost if the run is made again.
    """

    def __init__(self, message: str, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


@dataclass(frozen=True)
class SettingRecord:
    """What a method may see in training.

    Attributes:
        name: name of the setting.
        source: whether samples of the source are used.
        target: whether unlabelled samples of the target are used.
        stream: whether these are the test samples, which pass once; then there is no validation.
    """

    name: str
    source: bool
    target: bool
    stream: bool = False


@dataclass(frozen=True)
class Validation:
    """What one validation during training found.

    Attributes:
        step: steps done.
        validators: scores that need no target label, by name.
        oracle: scores that need target labels, by name.
        test: metrics on the test splits of the targets.
    """

    step: int
    validators: Mapping[str, float]
    oracle: Mapping[str, float]
    test: Metrics


@dataclass(frozen=True)
class Result:
    """One finished run, or one test of a checkpoint. Metrics are fractions.

    Attributes:
        method: class name of the method.
        task: the task's name.
        source: names of the source domains.
        target: names of the target domains.
        setting: what the method may see.
        seed: seed of the run.
        oracle: whether target labels trained the run, or the model that it started from.
        transductive_reason: why a prediction depends on other test samples; empty if it does not.
        averaged: names of the callbacks that replaced the final weights by an average that no validation has seen.
        monitors: names of the values that callbacks monitored.
        norm: how batch statistics treat the domains.
        ranks: number of processes that made the last part of the run. Some methods make another run on several.
        threads: number of threads that torch used in a process. Another number changes rounding.
        config_hash: stands for the configuration, see :func:`dafw.run.identity.config_hash`.
        steps: training steps done.
        seconds: seconds spent, in total, in training ("train") and in evaluation ("evaluate").
        num_target_test: number of target samples in the test.
        metric: name of the metric that is reported, and by which target labels judge a validation.
        label_sets: kind of the label sets, and their numbers of classes.
        undefined_reason: by target, why its metrics of unknown classes do not exist.
        test: metrics on the test splits.
        by_class: the method's own numbers of the test, by class and name.
        history: the validations, in order.
        higher_is_better: whether a higher score is better, by validator.
        versions: versions of the packages, by name.
        git_revision: revision of the repository that holds this package; empty without one.
        machine: the machine in words.
        checkpoint: the checkpoint that was tested; empty for the result of a run.
        sources: by module, a digest of the code that made the run, see :mod:`dafw.run.sources`. It is empty if nobody
            knows. That of a module that changed while the run was interrupted is none that a module can have.
        repositories: by folder name, the revision of each repository that holds modules of the user.
        samples: by domain and part, the number of samples that the run was trained on, and a digest of them.
        holds_out_source: whether no sample that validates or tests a source trained the run.
        fast_forms: whether the network kept its images in channels-last memory (``channels_last``), and whether the
            optimiser was fused (``fused``). Both change rounding. It is empty if nobody knows.
        source_use: what of the source the training used: ``samples``, ``statistics`` of them or ``nothing``. It is
            empty if nobody knows.
        pretrained: whose pretrained weights the networks started with, in words, such as ``timm's resnet50.tv_in1k``;
            empty without, and ``None`` if nobody knows.
        cost: what the run took besides seconds: ``samples``, the number that training steps saw on all ranks, source
            and target together; and in bytes ``peak_resident`` and ``peak_device``, the most memory that the first
            rank's process and its CUDA device held. It lacks what nobody knows.
        stream: what happened on the stream of a test-time method; ``None`` without a stream.
        estimates: by target and estimator, what the accuracy on the target's test split was estimated to be without its
            labels: ``value``, and its range from ``low`` to ``high``; see :mod:`dafw.estimation`. It is empty if the
            accuracy cannot be estimated.
    """

    method: str
    task: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    setting: SettingRecord
    seed: int
    oracle: bool
    transductive_reason: str
    averaged: str
    monitors: tuple[str, ...]
    norm: str
    ranks: int
    threads: int
    config_hash: str
    steps: int
    seconds: Mapping[str, float]
    num_target_test: int
    metric: str
    label_sets: Mapping[str, Any]
    undefined_reason: Mapping[str, str]
    test: Metrics
    by_class: Metrics
    history: tuple[Validation, ...]
    higher_is_better: Mapping[str, bool]
    versions: Mapping[str, str]
    git_revision: str
    machine: str
    checkpoint: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    repositories: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Samples] = field(default_factory=dict)
    holds_out_source: bool = True
    fast_forms: Mapping[str, bool] = field(default_factory=dict)
    source_use: str = ""
    pretrained: str | None = None
    cost: Mapping[str, int] = field(default_factory=dict)
    stream: StreamResult | None = None
    estimates: Mapping[str, Metrics] = field(default_factory=dict)

    @property
    def untested(self) -> tuple[str, ...]:
        """The targets without a metric, since they have no labels."""
        return tuple(name for name in self.target if name in self.undefined_reason and name not in self.test)


def write_result(result: Result, path: Path) -> None:
    """Writes a result file in one step."""
    content = {"schema_version": SCHEMA_VERSION, **asdict(result)}
    write_atomically(path, json.dumps(content, indent=1, allow_nan=True))


def read_result(folder: Path) -> Result | None:
    """The result of a run that is done, and ``None`` otherwise.

    Args:
        folder: the run directory.

    Raises:
        BrokenResult: if its result file cannot be read, or is of another schema.
    """
    path = Path(folder) / RESULT
    try:
        return read_result_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_result_file(path: Path) -> Result:
    """The result in a file.

    Raises:
        BrokenResult: if it cannot be read, or is of another schema.
        OSError: if there is no such file.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise BrokenResult(trouble(error)) from error
    except (ValueError, RecursionError) as error:
        raise BrokenResult(f"{path} is damaged: remove it to make the run again", damaged=True) from error
    try:
        if given["schema_version"] != SCHEMA_VERSION:
            said = f"has schema {given['schema_version']}, this dafw reads {SCHEMA_VERSION}"
            raise BrokenResult(f"{path} {said}: remove it to make the run again")
        return _parse(given)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"{path} does not follow schema {SCHEMA_VERSION} ({type(error).__name__}: {error})"
        raise BrokenResult(f"{why}: remove it to make the run again", damaged=True) from error


def _parse(given: Any) -> Result:
    setting = given["setting"]
    return Result(
        method=str(given["method"]),
        task=str(given["task"]),
        source=_names(given["source"]),
        target=_names(given["target"]),
        setting=SettingRecord(
            str(setting["name"]), bool(setting["source"]), bool(setting["target"]), bool(setting.get("stream", False))
        ),
        seed=int(given["seed"]),
        oracle=bool(given["oracle"]),
        transductive_reason=str(given["transductive_reason"]),
        averaged=str(given["averaged"]),
        monitors=_names(given["monitors"]),
        norm=str(given["norm"]),
        ranks=int(given["ranks"]),
        threads=int(given["threads"]),
        config_hash=str(given["config_hash"]),
        steps=int(given["steps"]),
        seconds={name: float(given["seconds"][name]) for name in ("total", "train", "evaluate")},
        num_target_test=int(given["num_target_test"]),
        metric=str(given["metric"]),
        label_sets=dict(given["label_sets"]),
        undefined_reason=_texts(given["undefined_reason"]),
        test=_metrics(given["test"]),
        by_class=_metrics(given["by_class"]),
        history=tuple(
            Validation(
                step=int(one["step"]),
                validators=_floats(one["validators"]),
                oracle=_floats(one["oracle"]),
                test=_metrics(one["test"]),
            )
            for one in given["history"]
        ),
        higher_is_better={name: bool(up) for name, up in given["higher_is_better"].items()},
        versions=_texts(given["versions"]),
        git_revision=str(given["git_revision"]),
        machine=str(given["machine"]),
        checkpoint=str(given["checkpoint"]),
        sources=_texts(given.get("sources", {})),
        repositories=_texts(given.get("repositories", {})),
        samples={name: list(found) for name, found in given.get("samples", {}).items()},
        holds_out_source=bool(given.get("holds_out_source", True)),
        fast_forms={name: bool(used) for name, used in given.get("fast_forms", {}).items()},
        source_use=str(given.get("source_use", "")),
        pretrained=None if given.get("pretrained") is None else str(given["pretrained"]),
        cost={name: int(value) for name, value in given.get("cost", {}).items()},
        stream=StreamResult.parse(given["stream"]) if given.get("stream") else None,
        estimates={target: _metrics(found) for target, found in given.get("estimates", {}).items()},
    )


def _names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise TypeError(f"expected a list of names, not {given!r}")
    return tuple(map(str, given))


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(text) for name, text in given.items()}


def _floats(given: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in given.items()}


def _metrics(given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {name: _floats(values) for name, values in given.items()}
