"""Which class each number or colour of a mask file stands for."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dafw.data.padding import IGNORE
from dafw.errors import UserError
from dafw.files import reading
from dafw.names import one_spelling
from dafw.plain_yaml import load_yaml

UNKNOWN = IGNORE - 1
"""The value of a pixel whose number or colour the map does not have."""
_COLOUR = re.compile(r"#([0-9a-fA-F]{6})|(\d{1,3}), ?(\d{1,3}), ?(\d{1,3})")

Value = int | str
"""A number, or a colour as ``#rrggbb`` or ``r,g,b``."""


class ClassMap:
    """The classes of masks, and the numbers or colours that stand for them.

    Args:
        entries: a number or a colour, and the name of its class; ``None`` for pixels without a label. The classes have
            the order of their first entries.
        ignored: numbers or colours of pixels without a label, unless an entry names them.
        where: what to call the map in messages.

    Attributes:
        names: names of the K classes.
        colours: whether masks are read as colours.
        codes: by number, or by colour as 0xRRGGBB, the class; 255 for none.

    Raises:
        UserError: if an entry is neither number nor colour, both kinds occur, one occurs twice, or there is no class.
    """

    def __init__(
        self, entries: Iterable[tuple[Any, str | None]], ignored: Iterable[Value] = (IGNORE,), where: str = "the map"
    ) -> None:
        self.where, self.codes, kinds = where, dict[int, int](), set[bool]()
        found: dict[str, int] = {}
        for value, name in entries:
            code, is_colour = _code(value, where)
            kinds.add(is_colour)
            if code in self.codes:
                raise UserError(f"{where} names {value} twice: leave one out")
            if name is None:
                self.codes[code] = IGNORE
                continue
            self.codes[code] = found.setdefault(one_spelling(name), len(found))
        if len(kinds) > 1:
            raise UserError(f"{where} has both numbers and colours: a mask file has one kind")
        if not found:
            raise UserError(f"{where} names no class")
        if len(found) > UNKNOWN:
            raise UserError(f"{where} names {len(found)} classes, and masks hold {UNKNOWN} at most")
        self.names, self.colours = tuple(found), kinds == {True}
        for value in ignored:
            code, is_colour = _code(value, "data.ignored")
            if is_colour == self.colours:
                self.codes.setdefault(code, IGNORE)

    @classmethod
    def of_names(cls, names: Sequence[str], ignored: Iterable[Value] = (IGNORE,)) -> "ClassMap":
        """The map in which the position of a name is the number of its class.

        Raises:
            UserError: for a name that occurs twice.
        """
        if twice := [name for name, count in Counter(map(one_spelling, names)).items() if count > 1]:
            raise UserError(f'data.classes names "{twice[0]}" twice: leave one out')
        return cls(enumerate(names), ignored, "data.classes")

    @classmethod
    def read(cls, path: Path, ignored: Iterable[Value] = (IGNORE,)) -> "ClassMap":
        """The map of a YAML file.

        The file says ``number: name`` or ``"#rrggbb": name``, with ``null`` in place of a name for pixels without a
        label. Or it says ``name: number`` or ``name: [number, number]``, so that several numbers are one class.

        Raises:
            UserError: if the file cannot be read, is not such a map, or names a class or a number twice.
        """
        try:
            with reading("the map of classes", path):
                text = path.read_text(encoding="utf-8")
            _refuse_twice(yaml.compose(text, yaml.SafeLoader), path)
            given = load_yaml(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"the map of classes {path} is not YAML: {' '.join(str(error).split())}") from error
        if isinstance(given, list):
            given = dict(enumerate(given))
        if not isinstance(given, Mapping):
            raise UserError(f"the map of classes {path} must say for each number or colour the name of its class")
        if any(_is_value(key) for key in given):
            names = [_name(name, path) for name in given.values()]
            if twice := [name for name, count in Counter(names).items() if name is not None and count > 1]:
                values = [key for key, name in zip(given, names, strict=True) if name == twice[0]]
                both = f"{twice[0]}: [{', '.join(map(str, values))}]"
                raise UserError(
                    f'{path} names "{twice[0]}" twice, for {values[0]} and {values[1]}: leave one out, or, if both are '
                    f'that class, write the file the other way round, as in "{both}"'
                )
            return cls(zip(given, names, strict=True), ignored, str(path))
        each = [(_name(name, path), values if isinstance(values, list) else [values]) for name, values in given.items()]
        return cls(((value, name) for name, values in each for value in values), ignored, str(path))

    def encode(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        """Numbers, or colours as 0xRRGGBB, as classes: 255 without a label, 254 where the map does not know one."""
        table = self._table
        places = raw if raw.dtype == np.uint8 else np.minimum(raw.astype(np.int64), len(table) - 1)
        return np.asarray(table[places])

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        table = np.full(max(255, *self.codes) + 2, UNKNOWN, np.uint8)  # the last one is of all higher numbers
        table[list(self.codes)] = list(self.codes.values())
        return table

    def counts(self, found: Mapping[int, int]) -> NDArray[np.int64]:
        """Pixels of each class, (K,), from the number of pixels of each number or colour."""
        counts = np.zeros(len(self.names), np.int64)
        for code, count in found.items():
            if self.codes.get(code, IGNORE) != IGNORE:
                counts[self.codes[code]] += count
        return counts

    def unknown(self, found: Mapping[int, int]) -> tuple[str, int] | None:
        """A number or colour that the map does not know, the most frequent one, and how many pixels have it."""
        strange = {code: count for code, count in found.items() if code not in self.codes}
        if not strange:
            return None
        code = max(strange, key=lambda code: strange[code])
        return f"the colour #{code:06x}" if self.colours else f"the id {code}", strange[code]

    def reordered(self, names: Sequence[str], domain: str) -> "ClassMap":
        """The same map with the classes in another order.

        Args:
            names: the classes.
            domain: whose map this is, for messages.

        Raises:
            UserError: if this map lacks one of the classes, or has another one.
        """
        if lacking := [name for name in names if name not in self.names]:
            raise UserError(f'{self.where} lacks the class "{lacking[0]}", which other domains than {domain} have')
        if more := [name for name in self.names if name not in names]:
            raise UserError(f'{self.where} has the class "{more[0]}", which other domains than {domain} lack')
        place = {old: names.index(name) for old, name in enumerate(self.names)} | {IGNORE: IGNORE}
        made = object.__new__(ClassMap)
        made.where, made.names, made.colours = self.where, tuple(names), self.colours
        made.codes = {code: place[label] for code, label in self.codes.items()}
        return made


def _is_value(key: Any) -> bool:
    return (isinstance(key, int) and not isinstance(key, bool)) or (
        isinstance(key, str) and bool(_COLOUR.fullmatch(key))
    )


def _code(value: Any, where: str) -> tuple[int, bool]:
    """A number or a colour as a number, and whether it is a colour."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16:
        return value, False
    found = _COLOUR.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise UserError(f'{where} has "{value}", which is neither a number from 0 to 65535 nor a colour like "#804080"')
    if found[1]:
        return int(found[1], 16), True
    red, green, blue = (int(part) for part in found.groups()[1:])
    if max(red, green, blue) > 255:
        raise UserError(f'{where} has the colour "{value}", of which a part is above 255')
    return red << 16 | green << 8 | blue, True


def _name(name: Any, path: Path) -> str | None:
    if name is None or isinstance(name, str | int | float):
        return None if name is None else one_spelling(str(name))
    raise UserError(f"{path} must give one name for each number or colour, not {name}")


def _refuse_twice(document: Any, path: Path) -> None:
    """YAML keeps the last of two equal keys, so that a class would be lost without a word."""
    keys = [key.value for key, _ in document.value] if isinstance(document, yaml.MappingNode) else []
    if twice := [key for key, count in Counter(map(str, keys)).items() if count > 1]:
        raise UserError(f'{path} names "{twice[0]}" twice: leave one out')
