"""A method that was made without a number that its data has: it waits for a trainer to bring the data."""

from functools import cache
from typing import Any, Self

import pytorch_lightning as pl

from dafw.data.served import ServedDomains
from dafw.errors import UserError
from dafw.lightning_adapter import has_trainer, trains_in_a_copy
from dafw.recording import Recorded

NUMBERS = ("num_classes", "num_sources")
"""The arguments of a method that the data knows."""


class MayWait(Recorded):
    """Base of every method. One that is made without a number of its data waits for it, see :class:`Waiting`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A method that waits until its constructor has run."""
        self: Self = super().__new__(waiting(cls), *args, **kwargs)  # type: ignore[arg-type]  # a class can be hashed
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """How to copy or pickle a method. The copy runs no constructor, so it does not wait for one."""
        made: Any = super().__reduce_ex__(protocol)
        return object.__new__, made[1][:1], *made[2:]


class Waiting(MayWait, pl.LightningModule):
    """A method whose constructor lacks a number of the data. The constructor runs again when the data is there.

    It is an instance of the method's class, and then becomes a plain one, as torch's lazy modules do. Until then it has
    no parameters. It takes the data from its trainer, before Lightning sets anything up.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        owner = self._become_plain()
        try:
            owner.__init__(self, *args, **kwargs)
        except TypeError as error:
            if not _missing(error, kwargs):
                raise
            self.__class__ = waiting(owner)
            pl.LightningModule.__init__(self)

    def build(self, data: ServedDomains) -> None:
        """Makes the method, with the numbers of the data that its constructor lacks.

        Raises:
            UserError: for a value that the constructor refuses.
        """
        trainer = self.trainer if has_trainer(self) else None
        owner, (args, given) = self._become_plain(), self._given
        kwargs = dict(given)
        while True:
            try:
                owner.__init__(self, *args, **kwargs)
                break
            except TypeError as error:
                found = _missing(error, kwargs)
                if not found:
                    raise
                kwargs.update({name: getattr(data, name) for name in found})
        self._given, self.trainer = (args, kwargs), trainer

    def configure_callbacks(self) -> Any:
        """Makes the method. This is the first hook of every fit and of every evaluation.

        Raises:
            UserError: see :meth:`build`; without a datamodule; if the training is in a copy of this process.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ServedDomains):
            raise UserError(f"{self._lack()}, or give the trainer a DomainDataModule as datamodule")
        if trains_in_a_copy(self.trainer):
            raise UserError(f"{self._lack()}, since this trainer trains in a copy of the process")
        self.build(data)
        return self.configure_callbacks()  # that of the method which this object is now

    def cpu(self) -> Self:
        """Nothing to move: Lightning moves what it trained back to the CPU, also after an error."""
        return self

    def _become_plain(self) -> Any:
        """The class of the method, which this object gets."""
        self.__class__ = type(self).__mro__[2]
        return type(self)

    def _lack(self) -> str:
        name = type(self).__name__
        return f"{name} was made without num_classes: give it, or make the method by dafw.make({name}, network, data)"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(f"there is no {name} before a trainer brings the data. {self._lack()}") from None

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UserError(self._lack())

    _apply: Any = _refuse
    load_state_dict: Any = _refuse
    state_dict: Any = _refuse
    named_parameters: Any = _refuse
    __reduce_ex__: Any = _refuse


@cache
def waiting(owner: Any) -> Any:
    """The class of the waiting methods of a class. It has the same name. The parser leaves it out, as a local class."""
    place = {"__module__": owner.__module__, "__qualname__": f"waiting.<locals>.{owner.__qualname__}"}
    return type(owner.__name__, (Waiting, owner), place)


def _missing(error: TypeError, given: dict[str, Any]) -> list[str]:
    """The numbers of the data that a constructor was not given, by what Python says of its call."""
    said = str(error) if "missing" in str(error) else ""
    return [name for name in NUMBERS if f"'{name}'" in said and name not in given]
