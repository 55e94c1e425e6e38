"""Many strings in little memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Strings(Sequence[str]):
    """Strings in one buffer, without a Python object for each: half a million paths of 40 letters take 28 MB.

    A selection shares the buffer. Two sequences with the same strings in the same order are equal.

    Args:
        text: UTF-8 of all strings.
        starts: where each begins in ``text``, (n,).
        ends: where each ends, (n,).
    """

    def __init__(self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.text, self.starts, self.ends = text, starts, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Strings":
        """Collects strings, which may come one by one."""
        text, bounds = bytearray(), array("q", [0])
        for one in strings:
            text += one.encode("utf-8", "surrogatepass")
            bounds.append(len(text))
        positions = np.array(bounds, np.int64)
        return cls(bytes(text), positions[:-1], positions[1:])

    def any_starts_with(self, letter: str) -> bool:
        """Whether a string begins with a letter of ASCII."""
        there = self.ends > self.starts
        return bool((np.frombuffer(self.text, np.uint8)[self.starts[there]] == ord(letter)).any())

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        """One string, or for a slice or an array of positions a selection."""
        if isinstance(index, slice | np.ndarray):
            return Strings(self.text, self.starts[index], self.ends[index])
        return self.text[self.starts[index] : self.ends[index]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        text, step = self.text, 4096  # numbers of Python are faster to slice with, and a part at a time takes no memory
        for first in range(0, len(self), step):
            part = slice(first, first + step)
            for start, end in zip(self.starts[part].tolist(), self.ends[part].tolist(), strict=True):
                yield text[start:end].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings({list(self[:3])}{' and more' if len(self) > 3 else ''})"


class Words:
    """One word for each sample, such as its class, where few words occur many times.

    Args:
        words: the words that may occur, each once; ``None`` stands for no word.
        codes: the position in ``words`` of each sample's word, (n,).
    """

    def __init__(self, words: Sequence[str | None], codes: NDArray[np.int32]) -> None:
        self.words, self.codes = tuple(words), codes

    def __getitem__(self, index: slice | NDArray[Any]) -> "Words":
        return Words(self.words, self.codes[index])

    def at(self, index: int) -> str | None:
        """The word of one sample."""
        return self.words[int(self.codes[index])]

    def counts(self) -> dict[str | None, int]:
        """How often each word occurs, without those that do not."""
        found = np.bincount(self.codes, minlength=len(self.words)).tolist()
        return {word: count for word, count in zip(self.words, found, strict=True) if count}

    def are(self, word: str | None) -> NDArray[np.bool_]:
        """Whether each sample has this word, (n,)."""
        return np.equal(self.codes, self.words.index(word) if word in self.words else -1)


class Coder(dict[Sequence[str | None], int]):
    """Gives each new combination of words the next number. It collects several columns of :class:`Words` at once."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = array("i")

    def __missing__(self, words: Sequence[str | None]) -> int:
        self[words] = code = len(self)
        return code

    def add(self, words: Sequence[str | None]) -> None:
        """Adds the next sample's words, one for each column."""
        self.codes.append(self[words])

    def columns(self, count: int) -> list[Words]:
        """The words of all samples: so many columns."""
        codes, found = np.array(self.codes, np.int32), []
        for column in zip(*self, strict=True) if self else [()] * count:
            number = {word: code for code, word in enumerate(dict.fromkeys(column))}
            found.append(Words(tuple(number), np.array([number[word] for word in column], np.int32)[codes]))
        return found
