"""What is searched, and where it lies in a configuration."""

from pathlib import Path
from typing import Any

import pytest

from dafw.errors import UserError
from dafw.tuning.space import (
    Dimension,
    locate,
    make_range,
    method_space,
    overlay,
    parse_space,
    place,
    whole_space,
)

NETWORK = {"class_path": "Network", "init_args": {"dropout": 0.0, "mean": None}}
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"class_path": "DANN", "init_args": {"network": NETWORK, "lr": 0.01, "schedule": None}},
    "data": {"class_path": "Digits", "init_args": {"batch_size": 32}},
    "trainer": {"max_epochs": 1},
}


@pytest.mark.parametrize(
    ("low", "high", "scale", "log", "whole"),
    [
        (0.1, 1.0, "", True, False),
        (0.1, 0.9, "", False, False),
        (0.1, 0.9, "log", True, False),
        (0.001, 1.0, "linear", False, False),
        (0.0, 1.0, "", False, False),
        (-1.0, 20.0, "", False, False),
        (1, 100, "", False, True),
        (1, 100, "log", True, True),
        (1, 2.5, "", False, False),
    ],
)
def test_ranges(low: float, high: float, scale: str, log: bool, whole: bool) -> None:
    dimension = make_range("model.x", low, high, scale)
    assert (dimension.log, dimension.whole) == (log, whole)


def test_of_a_method() -> None:
    space = method_space({"lr": (1e-3, 1e-1), "steps": [1, 2, 4], "entropy": [False, True], "depth": (1, 3)})
    assert [str(dimension) for dimension in space] == [
        "model.lr=0.001:0.1:log",
        "model.steps=1,2,4",
        "model.entropy=false,true",
        "model.depth=1:3:linear",
    ]


@pytest.mark.parametrize(
    "text", ["model.lr=0.001:0.1:log", "data.batch_size=16:64:linear", "model.norm=joint,null,2.5"]
)
def test_written_as_it_is_read(text: str) -> None:
    assert [str(dimension) for dimension in parse_space(text)] == [text]


def test_numbers_with_an_exponent() -> None:
    assert parse_space("lr=1e-4:1e-1") == [Dimension("model.lr", 1e-4, 1e-1, log=True)]
    assert parse_space("lr=1e-4,3e-4")[0].choices == (1e-4, 3e-4)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("lr: 1e-3:1e-1\nramp_steps: 1:30\nmodel.norm: [joint, frozen]\ncritic_norm: [true, false]\n")
    assert [str(dimension) for dimension in parse_space(str(path))] == [
        "model.lr=0.001:0.1:log",
        "model.ramp_steps=1:30:linear",
        "model.norm=joint,frozen",
        "model.critic_norm=true,false",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr=2:1", "the range of model.lr must go from one number to a greater one, not from 2 to 1"),
        ("lr=a:b", "not from a to b"),
        ("lr=0.1:.inf", "not from 0.1 to inf"),
        ("lr=0:1:log", "it must start above 0, not at 0"),
        ("lr=1:2:3", "--space takes KEY=LOW:HIGH"),
        ("lr=1:2:log:log", "--space takes KEY=LOW:HIGH"),
        ("lr=", "--space takes KEY=LOW:HIGH"),
        ("=1:2", "--space takes KEY=LOW:HIGH"),
        ("lr=[1],2", "the choices of model.lr must be numbers, words, true or false"),
        ("nowhere.yaml", 'there is no file "nowhere.yaml"'),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_space(text)
    assert said in str(refused.value)


@pytest.mark.parametrize("text", ["", "- lr", "lr: {low: 1}", "lr: [[1], 2]", "{"])
def test_a_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        parse_space(str(path))


def test_what_is_given_wins_over_the_method_and_what_is_fixed_is_left_out() -> None:
    own = method_space({"lr": (1e-3, 1e-1), "weight": (0.1, 2.0)})
    given = parse_space("lr=0.1,0.2")
    assert whole_space(own, given, []) == (given[0], own[1])
    assert whole_space(own, [], ["model.lr"]) == (own[1],)
    with pytest.raises(UserError, match=r"model\.lr has a value and a --space"):
        whole_space(own, given, ["model.lr"])
    with pytest.raises(UserError, match="nothing to search"):
        whole_space(own, [], ["model.lr", "model.weight"])


def test_places() -> None:
    assert locate(CONFIG, "model.network.dropout") == ("model", "init_args", "network", "init_args", "dropout")
    assert locate(CONFIG, "trainer.max_epochs") == ("trainer", "max_epochs")
    placed = place(CONFIG, {"model.network.dropout": 0.5, "data.batch_size": 8})
    assert placed["model"]["init_args"]["network"]["init_args"] == {"dropout": 0.5, "mean": None}
    assert placed["data"]["init_args"]["batch_size"] == 8
    assert NETWORK["init_args"] == {"dropout": 0.0, "mean": None}, "the original must stay as it is"


def test_an_overlay_has_the_values_and_their_classes_alone() -> None:
    network = {"class_path": "Network", "init_args": {"dropout": 0.5}}
    assert overlay(CONFIG, {"model.network.dropout": 0.5, "model.lr": 0.1, "trainer.max_epochs": 2}) == {
        "model": {"class_path": "DANN", "init_args": {"network": network, "lr": 0.1}},
        "trainer": {"max_epochs": 2},
    }


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.lrr", 'unknown key "model.lrr": did you mean "lr"?'),
        ("model.network.dropuot", 'did you mean "dropout"?'),
        ("model.schedule.alpha", "model.schedule has no keys"),
        ("model.init_args.lr", "names no argument"),
        ("modle.lr", 'unknown first word of --space "modle": did you mean "model"?'),
        ("run.root", "first word"),
        ("model.network", "has keys of its own: name one of them, as in model.network.dropout"),
        ("model", "has keys of its own"),
    ],
)
def test_no_such_place(key: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        locate(CONFIG, key)
    assert said in str(refused.value)
