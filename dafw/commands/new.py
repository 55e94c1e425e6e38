"""``dafw new method Name``: a method that works, and the test that holds it to the contract."""

import argparse
import keyword
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from dafw.commands.templates import KINDS, SETTINGS, STREAM_TEST, TEST
from dafw.errors import UserError
from dafw.files import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``dafw new``."""
    parser.add_argument("kind", choices=["method"], help="what to write")
    parser.add_argument("name", help="name of the class, as in MeanMatching")
    parser.add_argument("--problem", choices=list(KINDS), default="classification", help="kind of problem it is for")
    parser.add_argument("--setting", choices=list(SETTINGS), default="adaptation", help="what it may see of the data")
    parser.add_argument("--dir", type=user_path, default=Path(), help="folder to write into (this one)")


def main(args: argparse.Namespace) -> int:
    """Writes the two files and says how to run them.

    Raises:
        UserError: for a name that is no class name, or that would hide a module, for files that exist, and for a
            problem that methods of the setting do not take.
    """
    if args.setting == "test-time" and args.problem != "classification":
        raise UserError(f"a test-time method serves classes alone, no {args.problem}: leave out --problem or --setting")
    kind = KINDS[args.problem]
    name, folder = check_name(args.name), Path(args.dir)
    module = snake_case(name)
    test = TEST + STREAM_TEST if args.setting == "test-time" else TEST
    texts = {folder / f"{module}.py": SETTINGS[args.setting], folder / f"test_{module}.py": test}
    for path in texts:
        if path.exists():
            raise UserError(f"{path} exists already: choose another name, or remove it")
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise UserError(f'{module}.py would hide the module "{module}": choose another name, such as "{name}Method"')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text.format(**kind.words | {"name": name, "module": module}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error
    there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    for path in texts:
        print(f"wrote {path}")
    started = " --model.checkpoint RUN" if args.setting == "test-time" else ""
    print(f"{there}dafw fit --model {module}.{name}{started} {kind.command}")
    print(f"{there}python -m pytest test_{module}.py")
    return 0


def check_name(name: str) -> str:
    """Returns ``name`` if it can be a class's.

    Raises:
        UserError: otherwise, with a name that can.
    """
    if re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) and not keyword.iskeyword(name):
        return name
    words = re.findall(r"[A-Za-z0-9]+", name)
    camel = "".join(word[0].upper() + word[1:] for word in words).lstrip("0123456789")
    camel = camel[:1].upper() + camel[1:]
    if not camel or keyword.iskeyword(camel):
        camel = f"My{camel or 'Method'}"
    raise UserError(f'"{name}" cannot name a class: did you mean "{camel}"?')


def snake_case(name: str) -> str:
    """The module's name.

    >>> snake_case("DeepCORALPlus"), snake_case("MeanMatching"), snake_case("DANN2")
    ('deep_coral_plus', 'mean_matching', 'dann2')
    """
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", parted).lower()
