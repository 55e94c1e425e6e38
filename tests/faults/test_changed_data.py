"""Data that changed since a checkpoint was written, and checkpoints that lack a part."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, fork
from interrupted import FIT, at_step

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.testing.toys import ToyData

ACCEPT = ("--run.accept_changed_data", "true")


@pytest.fixture
def last(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The final checkpoint of a run that has no result yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shutil.copytree(uninterrupted, Path("runs") / uninterrupted.name)
    folder = Path("runs") / uninterrupted.name
    (folder / "result.json").unlink()
    return folder / "checkpoints" / "step=12.ckpt"


@pytest.fixture
def alter(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes one split of one domain of the toy data."""
    load = ToyData.load

    def altering(name: str, split: Split, change: Callable[[Domain], Domain]) -> None:
        def loading(self: ToyData, asked: str, part: Split) -> Domain:
            domain = load(self, asked, part)
            return change(domain) if (asked, part) == (name, split) else domain

        monkeypatch.setattr(ToyData, "load", loading)

    return altering


def said(capsys: pytest.CaptureFixture[str], command: str, *more: object) -> str:
    """The sentence with which a command refuses its checkpoint."""
    done = call(capsys, command, *FIT[1:], *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    return done.err.removeprefix("dafw: error: ").rstrip("\n")


COMMANDS = ("fit", "validate", "test", "predict")


@pytest.mark.parametrize(("names", "first"), [("zero one deux", 2), ("one zero two", 0)])
def test_classes_of_other_names_or_in_another_order(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, last: Path, names: str, first: int
) -> None:
    then, now = ToyData.class_names, tuple(names.split())
    monkeypatch.setattr(ToyData, "class_names", now)
    for command in COMMANDS[::3] if first else COMMANDS[1:3]:
        begin = f'output {first} of {last} is class "{then[first]}", but "{now[first]}" in the data: '
        assert said(capsys, command).startswith(begin)
    assert call(capsys, *FIT, *ACCEPT).code == 0


def test_another_number_of_classes_cannot_be_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, last: Path
) -> None:
    for names, end in ((("emu", "zero", "one", "two"), '4: "emu" is new'), (("zero", "one"), '2: "two" is gone')):
        monkeypatch.setattr(ToyData, "class_names", names)
        for command in ("fit", "test"):
            assert said(capsys, command, *ACCEPT) == f"{last} predicts 3 classes, but the data has {end}"


def test_another_number_of_samples(capsys: pytest.CaptureFixture[str], last: Path, alter: Callable[..., None]) -> None:
    alter("b", "train", lambda domain: domain.subset(range(39)))
    assert said(capsys, "fit") == (
        f"the training samples of b changed since {last}: 40 then, 39 now; if that is meant, "
        "say --run.accept_changed_data true"
    )
    for command in COMMANDS[1:]:  # which read other parts
        assert call(capsys, command, *FIT[1:]).code == 0
    assert call(capsys, *FIT, *ACCEPT).code == 0


def test_every_command_looks_at_what_it_reads(
    capsys: pytest.CaptureFixture[str], last: Path, alter: Callable[..., None]
) -> None:
    alter("b", "test", lambda domain: domain.subset(range(20)))
    for command in ("fit", "test", "predict"):
        assert f"the test samples of b changed since {last}: 21 then, 20 now" in said(capsys, command)
        assert call(capsys, command, *FIT[1:], *ACCEPT, "--run.dir", last.parents[1]).code == 0
        (last.parents[1] / "result.json").unlink(missing_ok=True)
    alter("b", "val", lambda domain: domain.subset(range(20)))
    assert f"the validation samples of b changed since {last}: 21 then, 20 now" in said(capsys, "validate")


def test_what_was_accepted_is_what_the_next_checkpoint_knows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alter: Callable[..., None]
) -> None:
    fit = (*FIT, "--run.checkpoint_every", 4)
    assert fork(tmp_path, *fit, setup=at_step(6, lambda: os.kill(os.getpid(), signal.SIGKILL))).wait().code < 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    alter("b", "train", lambda domain: domain.subset(range(39)))
    assert "the training samples of b changed since" in call(capsys, *fit).err
    assert call(capsys, *fit, *ACCEPT).code == 0
    (last,) = Path("runs").glob("*/checkpoints/step=12.ckpt")
    assert torch.load(last, weights_only=True)["dafw"]["samples"]["b/training"][0] == 39
    assert "accept_changed_data: false" in (last.parents[1] / "config.yaml").read_text()
    (last.parents[1] / "result.json").unlink()
    assert call(capsys, *fit).code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda domain: domain.subset([1, 0, *range(2, len(domain))]),
        lambda domain: replace(domain, labels=[2, *domain.labels[1:]]),
    ],
    ids=["order", "label"],
)
def test_as_many_samples_but_others(
    capsys: pytest.CaptureFixture[str], last: Path, alter: Callable[..., None], change: Callable[[Domain], Domain]
) -> None:
    alter("a", "train", change)
    assert f"the training samples of a changed since {last}: still 40, with other names or classes" in said(
        capsys, "fit"
    )


def remove(*names: str) -> Callable[[dict[str, Any]], None]:
    """Removes a part of a checkpoint."""

    def change(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        del content[names[-1]]

    return change


def replaced(value: Any, *names: str) -> Callable[[dict[str, Any]], None]:
    """Puts another value into a checkpoint."""

    def change(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        content[names[-1]] = value

    return change


#: What is done to a checkpoint, and what is said of it.
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    **{
        f"no dafw.{name}": (remove("dafw", name), f"lacks dafw.{name}: it is incomplete, or another version")
        for name in ("method", "steps", "history", "record", "labelled", "classes", "samples", "eval_network")
    },
    "a list": (replaced([1], "dafw"), "has a list as dafw"),
    "a word": (replaced("six", "dafw", "steps"), "has a str as dafw.steps"),
    "samples": (replaced({"b": 3}, "dafw", "samples"), "does not say in dafw.samples how many"),
    "a huge number": (replaced(10**9, "dafw", "method", "init_args", "width"), "its width is 1000000000, and it holds"),
}
#: What only a training that goes on needs.
FAULTS_OF_FIT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    **{
        f"no {name}": (remove(name), f"lacks {name}: it is incomplete")
        for name in ("loops", "callbacks", "optimizer_states", "lr_schedulers", "pytorch-lightning_version", "run")
    },
    "no optimiser": (replaced([], "optimizer_states"), "holds no state of an optimiser: it is incomplete"),
    "another optimiser": (
        replaced([{"state": {}, "param_groups": []}], "optimizer_states"),
        "loaded state dict has",
    ),
    "no threads": (remove("run", "threads"), "lacks run.threads: it is incomplete"),
    "no code": (remove("run", "sources"), "lacks run.sources: it is incomplete"),
    "an old Lightning": (replaced("1.0.0", "pytorch-lightning_version"), "does not fit this configuration"),
    "another weight": (replaced(torch.zeros(3), "state_dict", "zzz"), "does not fit this configuration"),
    "no weights": (replaced({}, "state_dict"), "does not fit this configuration"),
    "NaN": (replaced(torch.tensor([torch.nan]), "state_dict", "network.head.bias"), '"network.head.bias" in'),
}


@pytest.mark.parametrize("fault", [*FAULTS, *FAULTS_OF_FIT])
def test_a_checkpoint_that_lacks_a_part(capsys: pytest.CaptureFixture[str], last: Path, fault: str) -> None:
    change, expected = (FAULTS | FAULTS_OF_FIT)[fault]
    content = torch.load(last, weights_only=True)
    change(content)
    torch.save(content, last)
    sentence = said(capsys, "fit")
    assert expected in sentence
    assert str(last) in sentence
    if fault in FAULTS:
        assert expected in said(capsys, "test")
