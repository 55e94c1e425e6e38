"""The hash of a run: it is of what changes the numbers."""

from pathlib import Path
from typing import Any

import pytest

from dafw.run.config import parse, resolved_config
from dafw.run.identity import config_hash


def of_data(**arguments: Any) -> str:
    return config_hash({"model": {"class_path": "DANN"}, "data": {"class_path": "PACS", "init_args": arguments}})


def test_how_and_where_the_data_lies_makes_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ("d", "./d", "d/", "../x/d", "~/d", str(tmp_path / "d"), "/elsewhere/d")
    assert len({of_data(root=root) for root in spellings}) == 1
    assert len({of_data(root="d", manifest=f"{folder}m.csv") for folder in ("", "./", "/lists/")}) == 1
    assert of_data(root=".") == of_data(root=f"/elsewhere/{tmp_path.name}")
    others = [of_data(), of_data(root="d"), of_data(root="e"), of_data(root="d", manifest="m.csv"), of_data(size=3)]
    assert len(set(others)) == len(others)
    assert of_data(root="d", allow_outside_root=True) == of_data(root="d")


def test_a_link_keeps_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long-name").mkdir()
    (tmp_path / "d").symlink_to("long-name")
    assert of_data(root="d") == of_data(root="/elsewhere/d")


def test_how_weights_and_a_checkpoint_are_spelled_makes_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    def of_model(checkpoint: str, weights: str) -> str:
        network = {"class_path": "dafw.nn.network.Network", "init_args": {"weights": weights}}
        return config_hash(
            {"model": {"class_path": "SHOT", "init_args": {"checkpoint": checkpoint, "network": network}}}
        )

    assert of_model("m/source", "w.pth") == of_model("./m/source/", "./w.pth")
    assert of_model("~/source", "~/w.pth") == of_model("/home/me/source", "/home/me/w.pth")
    assert of_model("m/source", "w.pth") != of_model("m/source", "v.pth")
    assert of_model("m/source", "w.pth") != of_model("n/source", "w.pth")


def test_the_hash_stays_what_it_was() -> None:
    """Another hash would give every run that exists another directory: raise ``HASH_VERSION`` if that is meant."""
    assert of_data(root="data", source="art", target="photo", num_workers=2) == "a5bc3754"


def test_an_argument_that_came_later_leaves_the_runs_before_it_where_they_are() -> None:
    def of_network(**arguments: Any) -> str:
        network = {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "mnist_net", **arguments}}
        return config_hash({"model": {"class_path": "DANN", "init_args": {"network": network, "parts": None}}})

    def of_model(method: str, **arguments: Any) -> str:
        return config_hash({"model": {"class_path": method, "init_args": arguments}})

    assert of_model("NSA") == of_model("NSA", position_weight=0.0) != of_model("NSA", position_weight=0.06)
    assert of_model("MeanTeacher") == of_model("MeanTeacher", label_weights="alike")
    assert of_model("MeanTeacher") != of_model("MeanTeacher", label_weights="certainty")
    assert of_network() == of_network(bottleneck_norm=True, bottleneck_init=None, head_init=None)
    assert of_network() != of_network(bottleneck_norm=False)
    assert of_data(root="d") == of_data(root="d", evaluate_scaled=False) != of_data(root="d", evaluate_scaled=True)


def test_the_hash_of_a_complete_configuration_stays_what_it_was() -> None:
    """A new argument with a default that is not null changes it: see ``LATER``."""
    config = resolved_config(parse(["--config", "digits/quick_dann", "--model.weight", "1"]))
    assert config_hash({part: config[part] for part in ("seed_everything", "model", "data")}) == "516775a6"


def test_a_fast_form_that_is_left_to_dafw_gives_no_run_another_directory() -> None:
    """What was made when ``channels_last`` was false by default, and ``fused`` was no key, is still found."""

    def of_model(channels_last: bool | None, **arguments: Any) -> str:
        network = {"class_path": "dafw.nn.network.Network", "init_args": {"channels_last": channels_last}}
        return config_hash({"model": {"class_path": "DANN", "init_args": {"network": network, **arguments}}})

    assert of_model(None, fused=None) == of_model(None) == of_model(False) == "c03c77ed"
    others = [of_model(False), of_model(True), of_model(None, fused=True), of_model(None, fused=False)]
    assert len(set(others)) == len(others)
