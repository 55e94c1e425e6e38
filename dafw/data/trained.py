"""The trained model that a datamodule is made for. It knows its classes, so the files of a source are not needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property


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
