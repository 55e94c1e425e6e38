"""A domain: samples of one named distribution."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.references import References
from dafw.data.strings import Strings


@dataclass(frozen=True)
class Domain:
    """Samples of one named distribution, in a fixed order.

    Args:
        name: the domain's name, such as ``mnist``.
        inputs: ``inputs[i]`` is one sample; for images a uint8 tensor (C, H, W).
        labels: one label per sample; ``None`` where the domain has none, which is how a target reaches training.
        ids: a stable name per sample; its position if ``None``.
        volumes: the name of the volume that each sample is a slice of; ``None`` if the samples are no slices.
        references: for each sample an image of the same place in another condition; ``None`` if there are none.
        visits: how often a stream served each sample before, (n,); ``None``: never.
    """

    name: str
    inputs: Sequence[Any]
    labels: Sequence[Any] | NDArray[Any] | None
    ids: Sequence[str] | None = None
    volumes: Sequence[str] | None = None
    references: References | None = None
    visits: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        references = None if self.references is None else self.references.index
        parts = {"labels": self.labels, "ids": self.ids, "volumes": self.volumes, "references": references}
        parts["visits"] = self.visits
        for what, values in parts.items():
            if values is not None and len(values) != len(self.inputs):
                raise ValueError(f"{self.name}: {len(self.inputs)} inputs but {len(values)} {what}")

    def __len__(self) -> int:
        return len(self.inputs)

    def id(self, index: int) -> str:
        """The stable name of sample ``index``."""
        return self.ids[index] if self.ids is not None else f"{self.name}/{index}"

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "Domain":
        """The samples at ``indices``, in that order, without copying them."""
        chosen = np.asarray(indices, np.int64)
        ids = self.ids[chosen] if isinstance(self.ids, Strings) else Strings.of(map(self.id, chosen.tolist()))
        return replace(
            self,
            inputs=_View(self.inputs, chosen),
            labels=None if self.labels is None else _take(self.labels, chosen),
            ids=ids,
            volumes=None if self.volumes is None else [self.volumes[index] for index in chosen.tolist()],
            references=None if self.references is None else self.references.subset(chosen),
            visits=None if self.visits is None else self.visits[chosen],
        )

    def unlabelled(self) -> "Domain":
        """The same samples; the labels are not masked but absent."""
        return replace(self, labels=None)

    @property
    def classes(self) -> NDArray[np.int64] | None:
        """The class of each sample, (n,); ``None`` if there are no labels or a label is more than one number.

        Only the first label is read to find out: a mask or an annotation may lie in a file of its own.
        """
        if self.labels is None:
            return None
        if isinstance(self.labels, np.ndarray | Tensor):
            return np.asarray(self.labels, dtype=np.int64) if self.labels.ndim == 1 else None
        if len(self.labels) and not isinstance(self.labels[0], int | np.integer):
            return None
        return np.asarray(self.labels, dtype=np.int64)


def join(parts: Mapping[str, Domain], serve: Callable[[Domain], Any]) -> Domain:
    """The samples of several parts of one domain, one part after the other, without labels.

    A sample that several parts have comes once, where it is first. If a name stands for one sample in one part and for
    another in a later part, the names of the later part begin with the part's.

    Args:
        parts: by the part's name its samples.
        serve: what is served of a domain of one sample. Samples of the same name are compared by it.
    """
    found = list(parts.values())
    places: dict[str, tuple[int, int]] = {}
    for number, (name, part) in enumerate(parts.items()):
        ids = [part.id(index) for index in range(len(part))]
        shared = next((index for index, one in enumerate(ids) if one in places), None)
        if shared is not None:
            first, position = places[ids[shared]]
            if not _same(serve(part.subset([shared])), serve(found[first].subset([position]))):
                ids = [f"{name}/{one}" for one in ids]
        for index, one in enumerate(ids):
            places.setdefault(one, (number, index))
    return Domain(found[0].name, _Joined([part.inputs for part in found], list(places.values())), None, [*places])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))


def _take(values: Sequence[Any] | NDArray[Any], indices: NDArray[np.int64]) -> Any:
    return values[indices] if isinstance(values, np.ndarray | Tensor) else _View(values, indices)


class _View(Sequence[Any]):
    def __init__(self, base: Sequence[Any], indices: NDArray[np.int64]) -> None:
        self.base, self.indices = base, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.base[int(self.indices[index])]


class _Joined(Sequence[Any]):
    def __init__(self, parts: list[Sequence[Any]], places: list[tuple[int, int]]) -> None:
        self.parts, self.places = parts, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        part, position = self.places[index]
        return self.parts[part][position]


class ArrayImages(Sequence[Tensor]):
    """Images in one array (in memory or memory-mapped).

    Args:
        array: uint8 (N, H, W, C).
    """

    def __init__(self, array: NDArray[np.uint8]) -> None:
        if array.ndim != 4 or array.dtype != np.uint8:
            raise ValueError(f"expected uint8 (N, H, W, C), got {array.dtype} {array.shape}")
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(self.array[index].transpose(2, 0, 1)))
