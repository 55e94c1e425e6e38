"""Errors that end a run with one sentence."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from unicodedata import normalize

from dafw.escape import named, terminal


class UserError(Exception):
    """A mistake that the user can mend. The command line prints the message, one sentence, and exits with 2."""


class TrainingFailure(Exception):
    """Training came to a state from which it cannot recover. The message is one sentence; the exit code is 1."""

    retryable = False  # another attempt would repeat the same steps and end here again


class NonFiniteLoss(TrainingFailure):
    """A term of the loss became NaN or infinite. The message names the term, the step and the samples."""


class CollapsedTeacher(TrainingFailure):
    """A teacher finds nearly no objects any more. The message says how many it finds, and what to change."""


def sentence(error: BaseException) -> str:
    """An error's message on one line, without the traceback that a data loader's worker puts into it."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.rpartition(f"{type(error).__qualname__}: ")[2]
    return terminal(" ".join(text.split()))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the error that it was raised from or after, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def warn(text: str) -> None:
    """Prints a warning on standard error: something went wrong that does not end the run."""
    print(f"dafw: warning: {terminal(text)}", file=sys.stderr)


@contextmanager
def warning_that_names(what: str) -> Iterator[None]:
    """Turns an error of something optional, as a picture is, into a warning. ``what`` says what could not be done."""
    try:
        yield
    except Exception as error:
        warn(f"{what}: {sentence(error)}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """What to say after "unknown ...": the nearest valid choice if one is near, and all choices if they are few.

    Args:
        name: the name that was given.
        choices: the valid names.
    """
    names = sorted(set(choices))
    for choice in names:
        if choice != name and normalize("NFC", choice) == normalize("NFC", name):
            return f'"{choice}" looks the same, but its characters are others: {choice!a}, not {name!a}'
    close = [choice for choice in names if choice.casefold() == name.casefold()] or get_close_matches(
        name, names, n=1, cutoff=0.5
    )
    listed = f"choices: {named(*names)}" if 0 < len(names) <= 12 else ""
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
