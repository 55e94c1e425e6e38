"""Methods made for the data that they will train on."""

from typing import Any, TypeVar

from dafw.methods import Method
from dafw.methods.waiting import Waiting
from dafw.problems.model import NetworkBase
from datamodules.base import DomainDataModule

M = TypeVar("M", bound=Method)


def make(method: type[M], network: NetworkBase, data: DomainDataModule, **arguments: Any) -> M:
    """A method for some data. Its numbers of classes and of sources come from the data, as on the command line.

    >>> import dafw
    >>> data = dafw.Digits("mnist", "optdigits")
    >>> dafw.make(dafw.DANN, dafw.Network(), data, lr=0.02).num_classes
    10

    Args:
        method: the class.
        network: inputs to outputs. The method changes it in place, so each method needs its own.
        data: what the method will train on.
        arguments: further arguments of the class. A number of classes or of sources that is given wins.

    Raises:
        UserError: for a value that the class refuses.
    """
    made = method(network, **arguments)
    if isinstance(made, Waiting):
        made.build(data)
    return made
