"""What the argument parser complains about, in one sentence that names the key and the nearest valid choice."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning import Callback, Trainer
from torch import nn

import dafw.methods
import datamodules
from dafw.data.augment import Word
from dafw.errors import UserError, nearest
from dafw.evaluation.rejection import Rejection
from dafw.files import user_path
from dafw.methods.waiting import NUMBERS
from dafw.optim.schedules import Schedule
from dafw.optim.sharpness import Sharpness
from dafw.plain_yaml import DEEPEST, TOO_DEEP, bracket_depth, load_yaml
from dafw.problems import NetworkBase, Problem
from dafw.selection import Validator

_KEY = re.compile(r'(?:Parser key|Key) "([\w.]+)"')
_UNKNOWN = re.compile(
    r"Option '([\w.]+)' is not accepted|Key '([\w.]+)' is not expected|does not accept option '([\w.]+)'"
    r"|[Uu]nrecognized arguments?: (.+)"
)
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_GIVEN = re.compile(r"(?:Got value|Given value): (.*)")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val=(.*)\)$")
_EXPECTED = re.compile(r"Expected an? (<class '[\w.]+'>|\w+\.Literal\[.*?\])")
_ALIEN = re.compile(r"(?:Import path(?: ([\w.]+))? does not correspond to|Not a valid subclass of)")

TOP_KEYS = (
    *("seed_everything", "model", "data", "trainer", "run", "ckpt_path", "output"),
    *("images", "texts", "split", "with", "config"),
)
RUN_KEYS = (
    *("root", "dir", "checkpoint_every", "keep_checkpoints", "wandb", "project", "plots"),
    *("validators", "allow_oracle", "accept_changed_data"),
)
#: What others call a key.
SYNONYMS = {
    "learning_rate": "model.lr",
    "base_lr": "model.lr",
    "wd": "model.weight_decay",
    "optim": "model.optimizer",
    "lr_scheduler": "model.schedule",
    "scheduler": "model.schedule",
    "ema": "model.ema_decay",
    "backbone": "model.network.backbone",
    "arch": "model.network.backbone",
    "pretrained": "model.network.weights",
    "weights": "model.network.weights",
    "bs": "data.batch_size",
    "batchsize": "data.batch_size",
    "workers": "data.num_workers",
    "dataset": "data",
    "method": "model",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "n_epochs": "trainer.max_epochs",
    "iterations": "data.steps_per_epoch",
    "steps": "data.steps_per_epoch",
    "device": "trainer.accelerator",
    "gpus": "trainer.devices",
    "seed": "seed_everything",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "out": "run.dir",
    "output_dir": "run.dir",
}
#: What a key's class may be, and what to call it.
KINDS: dict[str, tuple[str, type]] = {
    "model": ("method", dafw.methods.Method),
    "data": ("datamodule", datamodules.DomainDataModule),
    "model.network": ("network", NetworkBase),
    "model.cloud": ("network", NetworkBase),
    "model.schedule": ("schedule", Schedule),
    "model.problem": ("problem", Problem),
    "model.sharpness": ("rule of sharpness", Sharpness),
    "model.rejection": ("rule of rejection", Rejection),
    "trainer.callbacks": ("callback", Callback),
    "run.validators": ("validator", Validator),
}


def explain(message: str, arguments: Sequence[str] = ()) -> str:
    """One sentence for jsonargparse's message of several lines.

    Args:
        message: what jsonargparse says.
        arguments: the command line, to say which file is meant.
    """
    keys = list(_KEY.finditer(message))
    key = ".".join(dict.fromkeys(match[1] for match in keys))
    inner = message[keys[-1].end() :] if keys else message
    if match := _UNKNOWN.search(message):
        return _unknown_key(key or _group(message), next(filter(None, match.groups())), _CLASS.findall(message))
    if match := re.search(r"arguments are required: (.+)", message):
        return f"{', '.join(f'{key}.{name}' if key else name for name in match[1].split(', '))} must be given"
    if match := re.search(r"File does not exist: '?([^'\n]+)", message):
        return f"there is no file {match[1]}"
    if "Problems parsing config" in message or "Unexpected config" in message:
        return broken_file(arguments) or " ".join(message.split())
    if match := re.search(r"Path is not a file: '?([^'\n]+)", message):
        return f"{match[1]} is not a file"
    if match := re.search(r"argument --([\w.]+): expected one argument", message):
        return f"{match[1]} needs a value"
    given = _given(inner)
    if key in KINDS and (sentence := _wrong_class(key, given, inner)):
        return sentence
    if key == "data.augment" and "." not in given:
        return f'unknown augmentation "{given}": {nearest(given, get_args(Word))}'.rstrip(": ")
    if match := re.search(r"dot import path string: (\S+)", inner):
        return f'{key}: expected a class path, got "{match[1]}"'
    if found := _EXPECTED.findall(inner):
        return _wrong_value(key, given, found)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return f"{key}: {lines[-1]}" if key and key not in lines[-1] else lines[-1]


def check_constructor(key: str, class_path: str, arguments: Namespace) -> None:
    """Refuses a class of the user's whose constructor the command line cannot read.

    Args:
        key: ``model`` or ``data``.
        class_path: of a method or a datamodule.
        arguments: of its constructor, as parsed.

    Raises:
        UserError: if ``**base`` hides the arguments of the base class, the network's argument has no type, or an
            argument without type and default is not given.
    """
    if hidden := _hides_base(key, class_path):
        raise UserError(hidden)
    network = arguments.get("network")
    if key == "model" and network is not None and not (isinstance(network, Namespace) and "class_path" in network):
        name = class_path.rpartition(".")[2]
        raise UserError(
            f"{name}.__init__ does not say what its argument network is: annotate it, network: Network, so that the"
            " command line can make one"
        )
    for lacking in _not_given(key, class_path, arguments):
        raise UserError(f"{lacking} must be given")


def _not_given(key: str, class_path: str, arguments: Namespace) -> Iterator[str]:
    """The arguments that have neither type nor default and no value, of a class and of the classes that it is given.

    The parser takes them for null. The datamodule gives a method those that it links.
    """
    empty = inspect.Parameter.empty
    parameters = inspect.signature(find_class(class_path).__init__).parameters.values()
    untyped = [one.name for one in parameters if one.annotation is empty and one.default is empty]
    for name, value in vars(arguments).items():
        if value is None and name in untyped and name not in NUMBERS:
            yield f"{key}.{name}"
        elif isinstance(value, Namespace) and "class_path" in value:
            yield from _not_given(f"{key}.{name}", value["class_path"], value.get("init_args") or Namespace())  # type: ignore[no-untyped-call]


def check_augment(given: Any) -> None:
    """Refuses to call anything by its name that is no transform.

    Args:
        given: ``data.augment`` as parsed: a word, a class path, a class with its arguments, or what they stand for.

    Raises:
        UserError: unless it is a word, or the class of a ``torch.nn.Module``, as the transforms of torchvision v2 are,
            and so is each class among its arguments.
    """
    if given is None or isinstance(given, nn.Module) or (isinstance(given, str) and "." not in given):
        return
    path = str(given["class_path"] if isinstance(given, Mapping | Namespace) else given)
    if isinstance(given, Namespace | Mapping):
        owner = find_class(path)
        if isinstance(owner, type) and issubclass(owner, nn.Module):
            for inner in _named_within(given.get("init_args")):
                check_augment(inner)
            return
    name = path if not callable(given) else getattr(given, "__qualname__", path)
    raise UserError(f"data.augment takes a transform of torchvision.transforms.v2 or a torch.nn.Module, not {name}")


def _named_within(given: Any) -> Iterator[Any]:
    """What is named by class or function within the arguments of a class: in a list, or as an argument itself."""
    if isinstance(given, Mapping | Namespace) and "class_path" not in given:
        for value in (given.as_dict() if isinstance(given, Namespace) else given).values():
            yield from _named_within(value)
    elif isinstance(given, list | tuple):
        for value in given:
            yield from _named_within(value)
    elif isinstance(given, Mapping | Namespace) or callable(given):
        yield given


def find_class(path: str) -> Any:
    """The class at a class path whose module can be imported."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


#: An argument of each kind's base class that every class of the kind takes.
_ALWAYS = {"model": "num_classes", "data": "batch_size"}


def _hides_base(key: str, class_path: str) -> str:
    """What to say of a class that takes ``**base`` and passes it on where no parser finds it; empty if it does not."""
    module, _, name = class_path.rpartition(".")
    if module.partition(".")[0] in ("dafw", "datamodules"):
        return ""
    owner = find_class(class_path)
    parameters = inspect.signature(owner.__init__).parameters.values()
    rest = [one.name for one in parameters if one.kind is inspect.Parameter.VAR_KEYWORD]
    if not rest or key not in _ALWAYS or _ALWAYS[key] in _options([class_path], key):
        return ""
    return (
        f"{name}.__init__ hides the arguments of its base class from the command line: pass **{rest[0]} on by itself,"
        f" super().__init__(..., **{rest[0]}), and not within a dictionary; an argument with a default of your own"
        " goes into the signature"
    )


def _given(inner: str) -> str:
    """What the user gave for the innermost key."""
    match = _GIVEN.search(inner)
    if match is None:
        return ""
    nested = _NESTED.search(match[1])
    return (nested[1] if nested else match[1]).strip().strip("'")


def _group(message: str) -> str:
    match = re.search(r"Group '([\w.]+)'", message)
    return match[1] if match else ""


def _unknown_key(path: str, name: str, classes: list[str]) -> str:
    name = name.split("=")[0].split()[0].lstrip("-")
    if classes and (hidden := _hides_base(path.partition(".")[0], classes[-1])):
        return hidden
    full = f"{path}.{name}" if path and not name.startswith(f"{path}.") else name
    first, last = full.partition(".")[0], full.rpartition(".")[2]
    if full.count(".") < 2 and (meant := SYNONYMS.get(last)) and full != meant:
        return f'unknown key "{full}": did you mean "{meant}"?'
    if first not in TOP_KEYS:
        homes = [f"{home}.{full}" for home, names in _homes().items() if full in names]
        if homes:
            return f'unknown key "{full}": did you mean "{homes[0]}"?'
        return f'unknown key "{first}": {nearest(first, TOP_KEYS)}'
    if path == "model.network" and (takers := _networks_with(last)):
        return f'unknown key "{full}": set model.network to {" or ".join(takers)}, which has it'
    return f'unknown key "{full}": {nearest(last, _options(classes, full))}'.rstrip(": ")


def _networks_with(argument: str) -> list[str]:
    """The networks of this project whose own constructor takes an argument."""
    names = _names(NetworkBase)
    found = {one.__name__: inspect.signature(one) for one in subclasses(NetworkBase) if one.__name__ in names}
    return sorted(name for name, taken in found.items() if argument in taken.parameters)


def _homes() -> dict[str, set[str]]:
    """Where a key could belong whose first part was forgotten."""
    return {
        "model": set(inspect.signature(dafw.methods.Method.__init__).parameters) - {"self"},
        "data": set(inspect.signature(datamodules.DomainDataModule.__init__).parameters) - {"self"},
        "trainer": set(inspect.signature(Trainer.__init__).parameters) - {"self"},
        "run": set(RUN_KEYS),
    }


def _options(classes: list[str], key: str) -> Iterable[str]:
    """Arguments of the innermost class named in the message, or of the key's group."""
    if classes:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(find_class(classes[-1]), fail_untyped=False)
        return {action.dest.split(".")[0] for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")}
    return _homes().get(key.partition(".")[0], set())


def _wrong_class(key: str, given: str, inner: str) -> str:
    """For a key that takes a class: that there is none of this name, or that it is of another kind."""
    kind, base = KINDS[key]
    if match := _CLASS.search(inner):
        given = match[1]
    if match := re.search(r"dot import path string: (\S+)", inner):
        given = match[1]
    if (not given or given.startswith(("{", "["))) and (match := _ALIEN.search(inner)):  # a class with its arguments
        given = match[1] or ""
    module, _, name = given.rpartition(".")
    unknown = f'unknown {kind} "{given}"'
    if match := re.search(r"[Nn]o module named '([\w.]+)'", inner):
        return f'{unknown}: there is no module "{match[1]}"'
    if "has no attribute" in inner:
        there = [each for each, value in vars(import_module(module)).items() if isinstance(value, type)]
        guess = nearest(name, there)
        return f"{unknown}: {module} has no such class{f', {guess}' if guess else ''}"
    reasons = re.findall(r"^ *- (?!Expected|Problem|Not a valid|Import path|Does not|a )(.+)", inner, re.MULTILINE)
    if module and reasons:
        return f"{key}: {given} cannot be imported: {reasons[0]}"
    if _ALIEN.search(inner) and module:
        owner = getattr(import_module(module), name, None)
        if isinstance(owner, type) and issubclass(owner, base):
            wanted = re.search(r"does not correspond to a subclass of (\w+)|Not a valid subclass of (\w+)", inner)
            needed = next(filter(None, wanted.groups())) if wanted else "different one"
            return f"{key}: {given} is a {kind}, but this method needs a {needed}"
        return f"{key}: {given} is not a {kind} (a subclass of {base.__name__})"
    if not module and given in _names(base):
        return f"{key}: {given} is a {kind}, but not one that this method takes"
    if "dot import path string" in inner or _ALIEN.search(inner):
        return f"{unknown}: {nearest(given, _names(base))}".rstrip(": ")
    return ""


def _names(base: type) -> list[str]:
    """Short names of the classes of one kind."""
    if base is dafw.methods.Method:
        public = [getattr(dafw.methods, name) for name in dafw.methods.__all__]
        methods = [each for each in public if isinstance(each, type) and issubclass(each, dafw.methods.Method)]
        return [method.__name__ for method in methods if not method.is_abstract]
    if base is datamodules.DomainDataModule:
        return [name for name in datamodules.__all__ if name != "DomainDataModule"]
    home = base.__module__.partition(".")[0]
    kinds = [kind for kind in subclasses(base) if kind.__module__.startswith(home)]
    return [kind.__name__ for kind in kinds if not kind.__name__.startswith("_")]


def subclasses(base: type) -> set[type]:
    """All classes that have a class for their base, or a class whose base it is, and so on."""
    found: set[type] = set()
    waiting = [base]
    while waiting:
        more: set[type] = set(waiting.pop().__subclasses__()) - found
        found |= more
        waiting += more
    return found


def _wrong_value(key: str, given: str, expected: list[str]) -> str:
    """For a key that takes a value: the choices, or the types."""
    literals = [text for text in expected if "Literal" in text]
    choices = [choice for text in literals for choice in re.findall(r"[\[ ]'?([^\[\],']+)'?", text)]
    if choices and any("bool" in text for text in expected):
        choices = ["true", "false", *choices]
    if choices:
        return f'{key}: unknown value "{given}": {nearest(given, choices)}'.rstrip(": ")
    types = [re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text) for text in expected]
    names = [name for name in dict.fromkeys(types) if name != "NoneType"]
    return f'{key}: expected {" or ".join(names)}, got "{given}"'


def check_files(arguments: Sequence[str]) -> None:
    """Looks at the values, and reads the files that ``--config`` names, before the parser does.

    Raises:
        UserError: if one is nested too deeply or holds a value that is not plain, which the parser would not survive.
    """
    if any(bracket_depth(argument) > DEEPEST for argument in arguments):
        raise UserError(f"a value on the command line is {TOO_DEEP}")
    for argument, following in pairwise([*arguments, ""]):
        key, equals, value = argument.partition("=")
        if key == "--config" and (said := broken_file([value if equals else following])):
            raise UserError(said)


def broken_file(arguments: Sequence[str]) -> str:
    """Which of the files on the command line is no configuration, and why; empty if all are."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for word in words:
        if word.endswith((".yaml", ".yml", ".json")) and (path := user_path(word)).is_file():
            try:
                if not isinstance(load_yaml(path.read_text(encoding="utf-8")), dict):
                    return f"{path} is no configuration: it must have keys such as model, data and trainer"
            except yaml.MarkedYAMLError as error:
                mark = error.problem_mark
                where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
                return f"{path} is not valid YAML: {error.problem}{where}"
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                return f"{path} is not valid YAML: {' '.join(str(error).split())}"
    return ""
