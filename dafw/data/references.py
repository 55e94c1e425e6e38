"""References: images of the same places in another condition, such as by day for images by night."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dafw.errors import UserError

if TYPE_CHECKING:
    from dafw.data.domain import Domain


@dataclass(frozen=True)
class References:
    """The reference of each sample of a domain. Several samples may share one.

    Args:
        images: ``images[i]`` is one reference, an image like those of the domain.
        index: (n,), the position of each sample's reference in ``images``; -1 for none.
    """

    images: Sequence[Any]
    index: NDArray[np.int64]

    def subset(self, chosen: NDArray[np.int64]) -> "References":
        """The references of some samples; no image is copied."""
        return References(self.images, self.index[chosen])

    def of(self, sample: int) -> Any:
        """The reference of a sample."""
        return self.images[int(self.index[sample])]


def check_references(domain: "Domain", asker: str) -> None:
    """Checks that each sample of a domain has a reference; no image is read.

    Args:
        domain: its samples.
        asker: who needs them, in words.

    Raises:
        UserError: naming the domain without references, or the first sample without one.
    """
    needs = f"{asker} needs a reference of another condition for each image"
    if domain.references is None:
        raise UserError(f"{needs}, and the data has none for {domain.name}")
    missing = np.flatnonzero(domain.references.index < 0)
    if len(missing):
        others = f" (nor have {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise UserError(f"{needs}, and {domain.id(int(missing[0]))} of {domain.name} has none{others}")
