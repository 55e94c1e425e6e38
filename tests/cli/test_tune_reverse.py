"""Reverse validation: there and back, without a label of the target."""

import json
from pathlib import Path

import pytest
import yaml
from commands import QUICK, call, refused
from commands import rows as read
from tuned import STUDY

from dafw.run.identity import config_hash
from dafw.tuning.reverse import reversed_config
from dafw.tuning.study import Study

REVERSE = ("tune", *QUICK, "--study", STUDY, "--objective", "reverse")
DANN = ("--model", "DANN", "--model.width", "8")


def test_the_way_back_learns_from_predictions_and_is_scored_on_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *REVERSE, *DANN, "--trials", 1, "--data.target_batch_size", 4)
    assert code == 0, err
    assert "reverse (last validation, maximized)" in out
    assert "no target label was used to train a trial or to choose one" in out
    best = Study(STUDY).best()[0]
    there = Path(best.user_attrs["runs"]["0"])
    (back,) = [path for path in Path("runs").iterdir() if path.name != there.name]
    result = json.loads((back / "result.json").read_text())
    assert (result["task"], result["oracle"]) == ("b->a", False)
    assert best.value == result["history"][-1]["oracle"]["accuracy"]
    asked = yaml.safe_load((back / "config.yaml").read_text())["data"]["init_args"]
    assert (asked["batch_size"], asked["target_batch_size"]) == (4, 8)
    assert Path(asked["pseudo_labels"]) == there / "reverse.csv"
    said = read((there / "reverse.csv").read_text())
    assert len(said) == 40 + 21 + 21
    assert {row["domain"] for row in said} == {"b"}


def test_labels_of_the_target_have_no_part(capsys: pytest.CaptureFixture[str]) -> None:
    """Nonsense in place of them leaves the score as it is."""
    values = []
    for garbage in ("false", "true"):
        study = f"{garbage}.db"
        given = [*REVERSE, *DANN, "--trials", 1, "--data.garbage", garbage, "--model.lr", 0.02, "--study", study]
        code, _, err = call(capsys, *given)
        assert code == 0, err
        values.append(Study(Path(study)).best()[0].value)
    assert values[0] == values[1]


def test_the_run_back_is_the_same_wherever_the_runs_lie() -> None:
    config = {"data": {"class_path": "ToyData", "init_args": {"source": ["a"], "target": ["b"], "batch_size": 8}}}
    one, other = (
        config_hash(reversed_config(config, Path(root, "DANN-a-b-s0-0123abcd", "reverse.csv")))
        for root in ("/x", "y/z")
    )
    assert one == other
    assert config["data"]["init_args"]["source"] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*DANN, "--select", "best"), "leave out --select best"),
        ((*DANN, "--data.oracle", "true", "--allow-oracle"), "leave out data.oracle"),
        ((*DANN, "--data.pseudo_labels", "x.csv"), "leave out data.pseudo_labels"),
        ((*DANN, "--data.label_sets", "{common: 2, source_private: 1}"), "the same ones in source and target"),
        (("--model", "ERM"), "which a generalization method does not"),
        ((*DANN, "--space", "data.pseudo_labels=a,b"), "cannot be searched"),
    ],
)
def test_what_has_no_way_back(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *REVERSE, *arguments)
