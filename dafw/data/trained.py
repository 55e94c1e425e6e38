"""The trained model that a datamodule is made for. It knows its classes, so the files of a source are not needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TypeVar

from dafw.errors import UserError

Found = TypeVar("Found")


class TrainedModel:
    """What a datamodule may know of the model that it is made for.

    Args:
        find_classes: returns the names of the classes that the model predicts, in their order; empty if they are not
            known. It is called once, and only if somebody asks.
        with_targets: whether the files of the targets are served. Without them, the datamodule prepares single inputs
            and looks for no file of a domain.
    """

    def __init__(self, find_classes: Callable[[], Sequence[str]], with_targets: bool = True) -> None:
        self._find_classes, self.with_targets = find_classes, with_targets

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the model predicts, in their order; empty if they are not known."""
        return tuple(self._find_classes())


_model: ContextVar[TrainedModel | None] = ContextVar("_model", default=None)


@contextmanager
def made_for(model: TrainedModel | None) -> Iterator[None]:
    """Inside, datamodules are made for this model."""
    token = _model.set(model)
    try:
        yield
    finally:
        _model.reset(token)


def trained_model() -> TrainedModel | None:
    """The model that datamodules are made for; ``None`` outside of :func:`made_for`."""
    return _model.get()


def looks_for_files() -> bool:
    """Whether a datamodule that is made here looks for files of domains; not if it prepares single inputs alone."""
    model = trained_model()
    return model is None or model.with_targets


def known_domains(
    there: Callable[[], Sequence[str]], source: str | Sequence[str], target: str | Sequence[str]
) -> tuple[str, ...]:
    """The names of the domains. With a trained model the files of some that are named may not be there.

    Args:
        there: returns the names of the domains that have files. It is not called if no files are looked for.
        source: the sources that are named.
        target: the targets that are named.
    """
    names = tuple(there()) if looks_for_files() else ()
    if trained_model() is None:
        return names
    sides = (source, *(() if looks_for_files() else (target,)))
    named = [name for side in sides for name in ([side] if isinstance(side, str) else side)]
    return tuple(dict.fromkeys((*names, *named)))


def list_domains(
    one: Callable[[str], Found], source: Sequence[str], target: Sequence[str], targets_tell: bool = False
) -> dict[str, Found]:
    """The samples of each domain; none if no files are looked for.

    A source is left out if its files are not there and there is a trained model that knows its classes.

    Args:
        one: returns the samples of one domain.
        source: the sources.
        target: the targets.
        targets_tell: whether the labels of the targets tell the classes too, if the trained model does not know them.

    Raises:
        UserError: of ``one``.
    """
    found: dict[str, Found] = {}
    model = trained_model()
    for name in (*source, *target) if looks_for_files() else ():
        try:
            found[name] = one(name)
        except UserError:
            if name in target or model is None or not (model.classes or targets_tell):
                raise
    return found
