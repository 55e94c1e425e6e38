"""Ranges of numbers, declared where an argument is: ``def __init__(self, network, *, width: PositiveInt = 1024)``.

An object that is :class:`Checked` refuses a number out of range when it is made, from the command line and from Python
alike. An argument that is a plain ``float`` must be finite.
"""

import inspect
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from dafw.errors import UserError


@dataclass(frozen=True, repr=False)
class Range:
    """What a number must be. It is the metadata of a type: ``Annotated[float, Range("must be 0 or more", 0)]``.

    Args:
        says: what an error says of the argument, behind its name.
        low: the least number.
        high: the greatest number.
        above: whether the number must be above ``low``.
        below: whether the number must be below ``high``.
        finite: whether the number must be finite. NaN is never in a range.
    """

    says: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    finite: bool = True

    def __contains__(self, number: float) -> bool:
        """Whether a number is in the range."""
        inside = self.low <= number <= self.high and not (self.finite and math.isinf(number))
        return inside and not (self.above and number == self.low) and not (self.below and number == self.high)

    def __repr__(self) -> str:
        """As the help of the command line shows it."""
        return self.says


FINITE = Range("must be a finite number")
PositiveInt = Annotated[int, Range("must be at least 1", 1)]
NonNegativeInt = Annotated[int, Range("must be at least 0", 0)]
PositiveFloat = Annotated[float, Range("must be a positive number", 0, above=True)]
NonNegativeFloat = Annotated[float, Range("must be 0 or more", 0)]
ClosedUnitInterval = Annotated[float, Range("must be from 0 to 1", 0, 1)]
RightOpenUnitInterval = Annotated[float, Range("must be at least 0 and below 1", 0, 1, below=True)]


class Checked:
    """An object whose constructor refuses numbers that are out of the ranges of its signature.

    An argument that a subclass declares anew with a plain type keeps the range that a base class gives it.

    Raises:
        UserError: when it is made, naming the argument, what it must be, and the number.
    """

    #: Where the command line has an object of this kind: the first words of an error.
    config_key: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Checks the arguments of the constructor."""
        names, ranges = _declared(cls)  # type: ignore[arg-type]  # a class can be hashed
        check_ranges(cls.config_key, {**dict(zip(names, args, strict=False)), **kwargs}, ranges)
        return super().__new__(cls)


def check_ranges(key: str, given: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Checks each number of some arguments, in lists and mappings too.

    Args:
        key: where the command line has them.
        given: the arguments by name.
        ranges: by name, what they must be. Arguments without a range may be anything.

    Raises:
        UserError: for the first number out of range.
    """
    for name, value in given.items():
        for number in _numbers(value) if name in ranges else ():
            if number not in ranges[name]:
                raise UserError(f"{key}{'.' if key else ''}{name} {ranges[name].says}, not {number}")


def _numbers(value: Any) -> Iterator[float]:
    """The numbers of a value, those of a list or of a mapping's values one after the other."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)


@cache
def _declared(owner: type) -> tuple[tuple[str, ...], dict[str, Range]]:
    """The names of the positional arguments of a constructor, and the ranges of all arguments that reach it.

    The constructors of the base classes count too, since ``**base`` passes arguments on to them.
    """
    names: tuple[str, ...] = ()
    ranges: dict[str, Range] = {}
    for one in owner.__mro__:
        if "__init__" not in vars(one) or one is object:
            continue
        try:
            signature = inspect.signature(vars(one)["__init__"], eval_str=True)
        except (NameError, TypeError, ValueError):  # a type that only a type checker can import
            signature = inspect.signature(vars(one)["__init__"])
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = names or tuple(p.name for p in signature.parameters.values() if p.kind in positional)[1:]
        for parameter in signature.parameters.values():
            found = _range_of(parameter.annotation)
            if found is not None and ranges.get(parameter.name, FINITE) is FINITE:
                ranges[parameter.name] = found
    return names, ranges


def _range_of(hint: Any) -> Range | None:
    """The range that a type declares for its numbers: that of its metadata, or that of a ``float`` in it."""
    if hint is float:
        return FINITE
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        return next((one for one in metadata if isinstance(one, Range)), None) or _range_of(inner)
    if get_origin(hint) in (Union, types.UnionType, list, tuple, dict):
        found = [one for one in map(_range_of, get_args(hint)) if one is not None]
        return next((one for one in found if one is not FINITE), found[0] if found else None)
    return None
