"""``dafw tune``: what it chooses by, what it refuses, and that an interrupted study goes on as if it had not been."""

import json
import signal
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from commands import QUICK, TOY, call, fork, one_run, refused, until
from tuned import IM, LR, STUDY, TUNE, distances, fake_run, found

from dafw.errors import UserError
from dafw.tuning import trials
from dafw.tuning.commands import _check_space
from dafw.tuning.space import make_choices
from dafw.tuning.study import Study

# ---- with real runs


def test_search_show_and_use(capfd: pytest.CaptureFixture[str], workplace: Path) -> None:
    made = fork(workplace, *IM, "--trials", 2, "--space", "data.evidence_samples=10:30").wait()
    assert (made.code, made.err) == (0, "")
    assert len(list(Path("runs").iterdir())) == 2
    assert "no target label was used to train a trial or to choose one" in made.out
    assert "accuracy" not in made.out, "the target's accuracy must not be seen"
    assert "A new study" not in made.out, "Optuna must be quiet"
    best = Study(STUDY).best()[0]
    folder = Path(best.user_attrs["runs"]["0"])
    result = json.loads((folder / "result.json").read_text())
    assert best.value == result["history"][-1]["validators"]["im"]
    asked = yaml.safe_load((folder / "config.yaml").read_text())
    assert asked["model"]["init_args"]["lr"] == best.params["model.lr"]
    assert asked["data"]["init_args"]["evidence_samples"] == best.params["data.evidence_samples"]

    shown = call(capfd, "tune", "show", STUDY)
    assert shown.code == 0
    listed = shown.out.splitlines()
    assert listed == made.out.splitlines()[-len(listed) - 1 : -1]
    assert (
        f"target test {100 * result['test']['b']['accuracy']:.2f} %"
        in call(capfd, "tune", "show", STUDY, "--allow-oracle").out
    )

    # The values over the same options, and over a file, make the same run, and the trial's own configuration too.
    overlay = Path("studies/dann.best.yaml")
    options = ("--model", "DANN", "--model.width", "8", *QUICK)
    assert call(capfd, "fit", *options, "--config", overlay).out == f"done already: {folder / 'result.json'}\n"
    again = call(capfd, "fit", "--config", folder / "config.yaml", "--run.dir", "again")
    assert again.code == 0, again.err
    assert json.loads(Path("again/result.json").read_text())["history"] == result["history"]


def test_a_run_that_diverges_is_a_failed_trial(capfd: pytest.CaptureFixture[str]) -> None:
    made = call(capfd, *IM, "--trials", 2, "--model.weight", "1", "--model.gamma", "1", "--space", "lr=1e30,1e35")
    assert made.code == 1
    assert [state for state, *_ in found()] == ["FAIL", "FAIL"]
    assert made.out.count('failed: the loss term "supervised" became ') == 2
    assert not Path("studies/dann.best.yaml").exists()


def test_sigterm_in_a_run(capfd: pytest.CaptureFixture[str], workplace: Path) -> None:
    steps = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "400", "--run.checkpoint_every", "20")
    long = ("tune", "--model", "DANN", *TOY, *steps, "--objective", "im", "--study", STUDY, "--trials", 1)
    process = fork(workplace, *long)
    assert until(lambda: any(path.name != "step=0.ckpt" for path in Path("runs").glob("*/checkpoints/*.ckpt")))
    process.send(signal.SIGTERM)
    done = process.wait()
    assert done.code == 128 + signal.SIGTERM, done.err
    assert "the same command goes on" in done.out
    assert not list(Path("runs").glob("*/result.json"))
    assert [state for state, *_ in found()] == ["WAITING"]
    assert call(capfd, *long).code == 0
    folder = one_run(Path("runs"))
    assert call(capfd, "fit", "--config", folder / "config.yaml", "--run.dir", "whole").code == 0
    one, other = (json.loads((path / "result.json").read_text())["history"] for path in (folder, Path("whole")))
    assert one == other


DEADLY = """
import multiprocessing, os, signal
from pathlib import Path
from dafw.testing.toys import ToyNet

class Net(ToyNet):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if multiprocessing.parent_process() is not None and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_two_workers_on_one_file_one_of_which_dies(capfd: pytest.CaptureFixture[str], workplace: Path) -> None:
    Path("deadly.py").write_text(DEADLY)
    made = call(capfd, *IM, "--model.network.backbone", "deadly.Net", "--trials", 5, "--workers", 2)
    assert (made.code, made.err) == (0, "")
    assert made.out.count("a process died (-9) in its trial; another takes its place") >= 1
    states = found()
    assert [state for state, *_ in states] == ["COMPLETE"] * 5
    assert len({params["model.lr"] for _, params, _ in states}) == 5
    assert [path.name for path in Path("studies/.dann.db.locks").iterdir()] == ["turn"]
    assert len(list(Path("runs").glob("*/result.json"))) == 5


# ---- the objective


@pytest.mark.parametrize(
    ("options", "nearest"),
    [(["im"], True), (["dev"], False), (["oracle", "--allow-oracle"], False)],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_direction(capfd: pytest.CaptureFixture[str], fake: None, options: list[str], nearest: bool) -> None:
    call(capfd, *TUNE, "--trials", 4, "--objective", *options)
    chosen = distances()
    assert len(chosen) == 4
    assert chosen == sorted(chosen, reverse=not nearest)


def test_the_oracle_marks_all_that_is_written(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    assert "oracle is decided by target labels" in refused(capfd, *TUNE, "--objective", "oracle")
    assert not STUDY.exists()
    made = call(capfd, *TUNE, "--objective", "oracle", "--allow-oracle", "--trials", 2)
    shown = call(capfd, "tune", "show", STUDY)
    for text in (made.out, shown.out, Path("studies/dann.best.yaml").read_text()):
        assert "ORACLE: target labels decide the objective" in text
        assert "no target label" not in text
    assert "trial 0 [ORACLE]: " in made.out
    assert "1. trial" in shown.out
    assert all("[ORACLE]" in line for line in shown.out.splitlines() if "trial" in line)
    assert "43.21" in made.out
    assert "43.21" not in shown.out


@pytest.mark.parametrize("key", ["data.oracle", "run.allow_oracle"])
def test_target_labels_in_the_runs(capfd: pytest.CaptureFixture[str], fake: None, key: str) -> None:
    assert f"({key}): say --allow-oracle" in refused(capfd, *IM, f"--{key}", "true")
    made = call(capfd, *IM, f"--{key}", "true", "--allow-oracle", "--trials", 1)
    assert made.code == 0
    assert "ORACLE: " in made.out
    assert "is the study of labels" in call(capfd, *IM, "--trials", 2).err


@pytest.mark.parametrize(("part", "failed"), [({"oracle": True}, 1), ({"monitors": ["oracle/accuracy"]}, 1), ({}, 0)])
def test_target_labels_in_a_result(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fake: None, part: dict[str, Any], failed: int
) -> None:
    def labelled(config: dict[str, Any], root: Path) -> Path:
        path = fake_run(config, root) / "result.json"
        path.write_text(json.dumps({"oracle": False, "monitors": ["val/im"], **json.loads(path.read_text()), **part}))
        return path.parent

    monkeypatch.setattr(trials, "execute", labelled)
    made = call(capfd, *IM, "--trials", 1)
    assert made.code == failed
    assert ("target labels took part in its run, and the study is one without" in made.out) == bool(failed)
    allowed = (*TUNE[:-1], "studies/allowed.db", "--objective", "im", "--run.allow_oracle", "true", "--allow-oracle")
    assert call(capfd, *allowed, "--trials", 1).code == 0


def test_the_validation_that_counts(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    call(capfd, *IM, "--trials", 1, "--seeds", 0)
    ((_, params, value),) = found()
    assert value == pytest.approx(-abs(params["model.lr"] - LR))
    call(capfd, *TUNE[:-1], "studies/best.db", "--objective", "im", "--select", "best", "--trials", 1)
    ((_, params, value),) = found(Path("studies/best.db"))
    assert value == pytest.approx(100 - abs(params["model.lr"] - LR))


def test_an_objective_that_is_nan(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    made = call(capfd, *TUNE, "--objective", "snd", "--trials", 1)
    assert made.code == 1
    assert "snd has no finite value at the last of 2 validations" in made.out
    made = call(capfd, *TUNE[:-1], "studies/best.db", "--objective", "snd", "--select", "best", "--trials", 1)
    assert made.code == 0


def test_the_mean_over_seeds(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    made = call(capfd, *IM, "--trials", 2, "--seeds", 1, 4)
    assert "mean of 2 seeds" in made.out
    for _, params, value in found():
        assert value == pytest.approx(2.5 - abs(params["model.lr"] - LR))
    held = [yaml.safe_load(path.read_text()) for path in Path("runs").glob("*/config.yaml")]
    seeds = [(config["seed_everything"], config["data"]["init_args"]["seed"]) for config in held]
    assert sorted(seeds) == [(1, 1), (1, 1), (4, 4), (4, 4)]


def test_the_seed_and_the_root_of_fit(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    call(capfd, *IM, "--trials", 1, "--seed_everything", 3, "--root", "elsewhere")
    assert "-s3-" in one_run(Path("elsewhere")).name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "imm"], 'unknown objective "imm": did you mean "im"?'),
        (["--objective", "accuracy"], 'did you mean "source_accuracy"?'),
        (["--objective", "im", "--trials", "0"], "0 is not a whole number from 1"),
        (["--objective", "im", "--select", "bets"], 'unknown choice "bets" of dafw tune: did you mean "best"?'),
        (["--objective", "im", "--seeds", "1", "1"], "--seeds must name each seed once, not 1 1"),
        (["--objective", "im", "--trails", "3"], 'unknown key "trails"'),
        (["--objective", "im", "--model.widht", "3"], 'unknown key "model.widht": did you mean "width"?'),
        (["--objective", "im", "--space", "wieght=1:2"], 'unknown key "model.wieght": did you mean "weight"?'),
        (["--objective", "im", "--space", "data.bath_size=1:2"], 'did you mean "batch_size"?'),
        (["--objective", "im", "--space", "depth=a,b"], 'model.depth: expected int, got "a"'),
        (["--objective", "im", "--space", "depth=1.5:2.5"], "model.depth: expected int"),
        (["--objective", "im", "--space", "norm=joint,frozn"], 'unknown value "frozn": did you mean "frozen"?'),
        (["--objective", "im", "--space", "data.seed=1,2"], "data.seed cannot be searched"),
        (["--objective", "im", "--space", "data.oracle=true,false"], "data.oracle cannot be searched: it decides"),
        (["--objective", "im", "--space", "data.init_args.oracle=true,false"], "oracle"),
        (["--objective", "im", "--space", "trainer.callbacks=null,SWAD"], "trainer.callbacks cannot be searched"),
        (
            ["--objective", "im", "--trainer.callbacks", "SWAD", "--trainer.callbacks.ratio", "1"],
            "the weights that SWAD averages: leave it out",
        ),
        (["--objective", "im", "--space", "lr=1:2", "--model.lr", "1"], "model.lr has a value and a --space"),
        (["--objective", "im", "--run.dir", "x"], "run.dir cannot be given"),
        (["--objective", "im", "--trainer.devices", "2"], "a trial trains on one device"),
        (["--objective", "im", "--data.batch_size", "41"], "fewer than a batch of 41"),
        (["--objective", "im", "--trainer.max_epochs", "-1"], "the training has no end"),
        (
            ["--objective", "im", "--model", "SourceOnly", "--model.lr", "0.1", "--model.weight_decay", "0"],
            "nothing to search",
        ),
        ([], "--objective"),
    ],
)
def test_wrong_input(capfd: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    command = ("tune", *QUICK, "--study", STUDY) if "SourceOnly" in options else TUNE
    assert said in refused(capfd, *command, *options)
    assert not STUDY.exists()


@pytest.mark.parametrize("key", ["model.checkpoint", "data.source", "data.target", "data.oracle"])
def test_what_all_trials_share(key: str) -> None:
    data = {"class_path": "Digits", "init_args": {"source": ["a"], "target": ["b"], "oracle": False}}
    config = {"model": {"class_path": "SHOT", "init_args": {"checkpoint": "a"}}, "data": data}
    with pytest.raises(UserError, match=f"{key} cannot be searched"):
        _check_space(cast(Any, None), config, [make_choices(key, ["a", "b"])])


def test_what_the_command_line_fixes_is_not_searched(capfd: pytest.CaptureFixture[str], fake: None) -> None:
    made = call(capfd, *IM, "--trials", 1, "--model.weight=0.5")
    assert made.out.startswith("searching model.gamma=1.0:20.0:log, model.lr=0.001:0.1:log\n")


def test_files_that_are_no_study(capfd: pytest.CaptureFixture[str], workplace: Path) -> None:
    assert refused(capfd, "tune", "show", "nowhere.db") == "there is no study nowhere.db"
    Path("text.db").write_text("text " * 1000)
    assert "text.db cannot be read as a study" in refused(capfd, "tune", "show", "text.db")
    import optuna

    optuna.create_study(study_name="theirs", storage="sqlite:///theirs.db")
    for command in (("tune", "show", "theirs.db"), (*TUNE[:-1], "theirs.db", "--objective", "im")):
        assert "theirs.db holds studies that dafw tune did not make" in refused(capfd, *command)


@pytest.mark.parametrize("command", [IM, ("tune", "show", "there.db")])
def test_without_optuna(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[Any, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert refused(capfd, *command) == 'dafw tune needs Optuna: pip install "dafw[tune]"'


def test_it_says_what_it_takes(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(capfd, "tune", "--help")
    out = capfd.readouterr().out
    assert "dafw tune show FILE" in out
    assert "options of dafw fit" in out
