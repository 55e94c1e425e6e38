"""What the argument parser complains about, in one sentence that names the key and the nearest valid choice."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

from jsonargparse import ArgumentParser
from pytorch_lightning import Trainer

import dafw.methods
import datamodules
from dafw.errors import nearest

_KEY = re.compile(r'(?:Parser key|Key) "([\w.]+)"')
_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted|Key '([\w.]+)' is not expected|[Uu]nrecognized arguments?: (.+)")
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_VALUE = re.compile(r"Expected an? (.+?)\. Got value: (.*)")
_CHOICE = re.compile(r"Expected a (typing\.Literal\[.*?\])")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)|[Nn]o module named '([\w.]+)'|has no attribute '(\w+)'")


RUN_KEYS = ("root", "dir", "checkpoint_every", "keep_checkpoints", "wandb", "project", "plots", "allow_oracle")


def explain(message: str) -> str:
    """One sentence for jsonargparse's message of several lines."""
    keys = _KEY.findall(message)
    path = ".".join(dict.fromkeys(keys))
    classes = _CLASS.findall(message)
    if match := _UNKNOWN.search(message):
        name = (match[1] or match[2] or match[3]).split("=")[0].split()[0].lstrip("-")
        full = f"{path}.{name}" if path and not name.startswith(path) else name
        return f'unknown key "{full}": {nearest(full.rpartition(".")[2], _options(classes, full))}'.rstrip(": ")
    if match := re.search(r"arguments are required: (.+)", message):
        return f"{match[1]} must be given"
    if match := re.search(r"File does not exist: (.+)", message):
        return f"there is no file {match[1]}"
    if match := _NO_CLASS.search(message):
        given = match[1] or match[2] or match[3]
        home: Any = datamodules if path.startswith("data") else dafw.methods
        kind = {"data": "datamodule", "model": "method"}.get(path, path or "class")
        choices = [] if kind == path else [n for n in home.__all__ if n not in ("DomainDataModule", "AdaptationMethod", "Method", "Losses")]
        return f'unknown {kind} "{given}": {nearest(given, choices)}'.rstrip(": ")
    if match := _VALUE.search(message):
        kind = re.sub(r"<class '([\w.]+)'>", r"\1", match[1])
        return f'{path}: expected {kind}, got "{match[2].strip()}"'
    if match := _CHOICE.search(message):
        given = re.search(r"Given value: (.+)", message)
        value = re.search(r"val='([^']*)'", given[1] if given else "")
        text = value[1] if value else (given[1] if given else "")
        return f'{path}: unknown value "{text}": {_literal(text, match[1])}'
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return f"{path}: {lines[-1]}" if path and path not in lines[-1] else lines[-1]


def _literal(given: str, literal: str) -> str:
    return nearest(given, re.findall(r"'([^']+)'", literal))


def _options(classes: list[str], key: str) -> Iterable[str]:
    """Arguments of the innermost class named in the message, or the commands' top-level keys."""
    if classes:
        parser = ArgumentParser(exit_on_error=False)
        module, _, name = classes[-1].rpartition(".")
        owner = getattr(__import__(module, fromlist=[name]), name)
        parser.add_class_arguments(owner)
        return {action.dest.split(".")[0] for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")}
    if key.startswith("trainer."):
        return set(inspect.signature(Trainer).parameters)
    if key.startswith("run."):
        return RUN_KEYS
    return ["seed_everything", "model", "data", "trainer", "run", "ckpt_path", "output", "config"]
