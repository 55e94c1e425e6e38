"""What a run keeps of its held-out source samples, so that no image of the source is needed later."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dafw.errors import UserError
from dafw.files import replacing

MOST_SAMPLES = 10_000
"""Samples that are kept at most, evenly spaced."""
MOST_FEATURES = 2_000
"""Samples whose features are kept at most, evenly spaced."""
TENSORS = ("features", "labels", "logits", "samples")


@dataclass(frozen=True)
class SourceEvidence:
    """A network's outputs for held-out source samples. It holds no image.

    Attributes:
        logits: (m, K) float32.
        labels: (m,) int64.
        samples: (m,) int64, a digest of each sample's name, see :func:`digests`; two runs find the samples that both
            keep by it.
        features: (f, d) float32, of at most :data:`MOST_FEATURES` of these samples.
        classes: the names of the K classes.
        domains: the names of the source domains.
        held_out: whether none of these samples trained the network.
        start_model: whether the network is the one that the run started from, and not the one that it ended with.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    samples: NDArray[np.int64]
    features: NDArray[np.float32]
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    held_out: bool = True
    start_model: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """The number K of classes."""
        return int(self.logits.shape[1])

    def write(self, path: Path) -> None:
        """Writes one safetensors file in one step."""
        with replacing(path) as file:
            file.write(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file."""
        from safetensors.numpy import save

        facts: dict[str, Any] = {"classes": self.classes, "domains": self.domains}
        facts |= {"held_out": self.held_out, "start_model": self.start_model}
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in TENSORS}
        return save(tensors, {"source_evidence": json.dumps(facts)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what :meth:`write` wrote. Nothing in the file is run.

        Raises:
            UserError: if there is no such file, or it is damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError(f"there is no file {path}: it holds what a run keeps of its held-out source samples")
        try:
            with safe_open(path, "numpy") as file:
                found: dict[str, Any] = {name: file.get_tensor(name) for name in TENSORS}
                facts = json.loads((file.metadata() or {})["source_evidence"])
            found |= {"classes": tuple(map(str, facts["classes"])), "domains": tuple(map(str, facts["domains"]))}
            evidence = cls(**found, held_out=bool(facts["held_out"]), start_model=bool(facts["start_model"]))
            evidence.check()
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no file of held-out source samples, or damaged: make its run again") from error
        return evidence

    def check(self) -> None:
        """Compares the shapes and types of the arrays.

        Raises:
            ValueError: if they do not fit each other.
        """
        shapes = self.logits.ndim, self.labels.shape, self.samples.shape, self.features.ndim
        if shapes != (2, (len(self.logits),), (len(self.logits),), 2):
            raise ValueError("shapes that do not fit each other")
        kinds = self.logits.dtype.kind, self.labels.dtype.kind, self.samples.dtype.kind, self.features.dtype.kind
        if kinds != ("f", "i", "i", "f") or (self.classes and len(self.classes) != self.num_classes):
            raise ValueError("another type or number of classes")


def digests(names: Sequence[str]) -> NDArray[np.int64]:
    """64 bits of a hash of each sample's name, (n,) int64."""
    found = [int.from_bytes(blake2b(one.encode(), digest_size=8).digest(), "big", signed=True) for one in names]
    return np.asarray(found, np.int64)
