"""``dafw tune`` on a study that is there: it goes on as if it had not been interrupted, and refuses another's."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import call, fork, refused
from tuned import IM, STUDY, TUNE, fake_run, found

from dafw.errors import NonFiniteLoss
from dafw.run.directory import run_directory
from dafw.tuning import trials
from dafw.tuning.commands import add_arguments, make_plan
from dafw.tuning.study import Plan, Study


def test_going_on_is_as_if_it_had_not_stopped(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    call(capfd, *IM, "--trials", 12)
    whole = found()
    other = Path("studies/parts.db")
    parts = (*TUNE[:-1], other, "--objective", "im")
    for count in (3, 3, 12):
        call(capfd, *parts, "--trials", count)
        assert len(found(other)) == count
    assert found(other) == whole
    assert len({params["model.lr"] for _, params, _ in whole}) == 12, "every trial must try something else"
    call(capfd, *parts, "--trials", 5)
    assert len(found(other)) == 12


def test_a_killed_process(capfd: pytest.CaptureFixture[str], workplace: Path, fake: None) -> None:
    call(capfd, *TUNE[:-1], "studies/whole.db", "--objective", "im", "--trials", 4)
    whole = found(Path("studies/whole.db"))

    def dies(config: dict[str, Any], root: Path) -> Path:
        if len(list(root.glob("*/result.json"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return fake_run(config, root)

    options = ("--trials", 4, "--root", "other")
    done = fork(workplace, *IM, *options, setup=lambda: setattr(trials, "execute", dies)).wait()
    assert done.code == -signal.SIGKILL
    assert [state for state, *_ in found()] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert call(capfd, *IM, *options).code == 0
    assert found() == whole


def plan_of(*arguments: object) -> Plan:
    """The plan of a command."""
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make_plan(*parser.parse_known_args([str(argument) for argument in arguments[1:]]))


def test_a_trial_that_takes_its_process_with_it_twice_has_failed() -> None:
    plan = plan_of(*IM, "--trials", 2)
    study = Study(STUDY, plan)
    tries = []
    for _ in range(2):
        taken = study.take(plan)
        assert taken is not None
        tries.append(taken.params)
        assert study.reclaim(crashed=True) == 0, "its process is there"
        taken.lock.release()
        assert study.reclaim(crashed=True) == 1
    assert tries[0] == tries[1]
    assert [state for state, *_ in found()] == ["FAIL"]
    taken = study.take(plan)
    assert taken is not None
    assert taken.params != tries[0]
    assert study.take(plan) is None


def test_a_trial_that_was_interrupted_often_is_tried_again() -> None:
    plan = plan_of(*IM, "--trials", 1)
    study = Study(STUDY, plan)
    for _ in range(4):
        taken = study.take(plan)
        assert taken is not None
        study.give_back(taken)
    assert [state for state, *_ in found()] == ["WAITING"]


def test_failed_trials_count_and_do_not_end_the_study(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def every_second(config: dict[str, Any], root: Path) -> Path:
        made.append(run_directory(config, root))
        if len(made) % 2:
            raise NonFiniteLoss('the term "domain" became NaN at step 1')
        return fake_run(config, root)

    monkeypatch.setattr(trials, "execute", every_second)
    done = call(capfd, *IM, "--trials", 4)
    assert done.code == 0
    assert [state for state, *_ in found()] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert "2 trials with im (last validation, maximized), 2 failed" in done.out
    assert 'failed: trial 0: the term "domain" became NaN at step 1' in done.out


# ---- what is refused


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--objective", "dev"], "is the study of objective im, not dev: give another --study"),
        (["--select", "best"], "select last, not best"),
        (["--seeds", "1", "2"], "seeds [0], not [1, 2]"),
        (["--space", "data.evidence_samples=10,20"], "space model.weight=0.2:4.0:log"),
        (["--sampler-seed", "1"], "sampler seed 0, not 1"),
        (["--model", "CDAN"], "method dafw.DANN, not dafw.CDAN"),
        (["--data.target", "c"], "data.target b, not c"),
        (["--data.steps_per_epoch", "3"], "data.steps_per_epoch 2, not 3"),
    ],
)
def test_another_study(capfd: pytest.CaptureFixture[str], fake: None, changed: list[str], said: str) -> None:
    call(capfd, *IM, "--trials", 1, "--root", "there")
    before = found()
    message = refused(capfd, *IM, "--trials", 2, "--root", "there", *changed)
    assert message.startswith(f"{STUDY} is the study of ")
    assert said in message
    assert found() == before


def test_other_callbacks_make_another_study(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    stopping = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/im")
    there = (*IM, "--root", "there")
    call(capfd, *there, "--trials", 1, *stopping)
    assert call(capfd, *there, "--trials", 2, *stopping).code == 0
    assert len(found()) == 2
    for changed in ((), (*stopping, "--trainer.callbacks.patience", 9)):
        assert f"{STUDY} is the study of callbacks [" in refused(capfd, *there, "--trials", 3, *changed)
    assert len(found()) == 2


def test_looking_on_makes_no_other_study(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    call(capfd, *IM, "--trials", 1)
    assert (
        call(
            capfd,
            *IM,
            "--trials",
            2,
            "--trainer.callbacks",
            "DeviceStatsMonitor",
            "--trainer.callbacks.cpu_stats",
            "true",
        ).code
        == 0
    )


def test_where_it_trains_makes_no_other_study(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    call(capfd, *IM, "--trials", 1)
    assert call(capfd, *IM, "--trials", 2, "--data.num_workers", 1, "--root", "elsewhere").code == 0
