"""A datamodule of one's own with nonsense in place of what the contract says must not matter."""

from dataclasses import replace
from typing import TypeVar

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.testing.toys import garbled
from datamodules.base import DomainDataModule

Data = TypeVar("Data", bound=DomainDataModule)


def alter(data: Data, *, garbage: bool = False, other_target: bool = False) -> Data:
    """Changes what ``load`` returns for the training and test splits of the targets.

    Args:
        data: the datamodule, changed in place.
        garbage: replace the labels by nonsense, see :func:`~dafw.testing.toys.garbled`.
        other_target: replace the images by their negatives.

    Returns:
        The same datamodule.
    """
    load = data.load

    def altered(name: str, split: Split) -> Domain:
        domain = load(name, split)
        if name not in data.target or split == "val":
            return domain
        if garbage and domain.labels is not None:
            domain = garbled(domain, data.num_classes)
        if other_target:
            domain = replace(domain, inputs=[255 - domain.inputs[i] for i in range(len(domain))])
        return domain

    if garbage or other_target:
        data.load = altered  # type: ignore[method-assign]
    return data
