"""What a user did wrong, in one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence; the command line prints it and exits with 2."""


def sentence(error: BaseException) -> str:
    """An error's message on one line. Of one that a data loader's worker raised: without the worker's traceback."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.rpartition(f"{type(error).__qualname__}: ")[2]
    return " ".join(text.split())


def nearest(name: str, choices: Iterable[str]) -> str:
    """What to say after "unknown ...": the nearest valid choice when there is one, and a list when it is short.

    Args:
        name: what was given.
        choices: what is valid.
    """
    names = sorted(set(choices))
    close = get_close_matches(name, names, n=1, cutoff=0.5) or [
        choice for choice in names if choice.casefold() == name.casefold()
    ]
    listed = f"choices: {', '.join(names)}" if 0 < len(names) <= 12 else ""
    guess = f'did you mean "{close[0]}"?' if close else ""
    return " ".join(part for part in (guess, f"({listed})" if listed else "") if part)


def choose(kind: str, name: str, choices: Iterable[str]) -> str:
    """Returns ``name`` if it is one of ``choices``.

    Raises:
        UserError: naming the kind, the name, and the nearest valid choice.
    """
    valid = list(choices)
    if name in valid:
        return name
    raise UserError(f'unknown {kind} "{name}": {nearest(name, valid)}'.rstrip(": "))
