"""Labelled samples of the source that come again during a stream."""

from collections.abc import Sequence

import numpy as np

from dafw.data.batch import Batch, collate
from dafw.data.domain import Domain
from dafw.data.joint import JointDataset
from dafw.data.sampler import Draw, draw
from dafw.errors import UserError, sentence
from dafw.methods.base import Method
from dafw.nn.distributed import own_rows, world_size


class SourceReplay:
    """Batches of source samples, a function of the seed and the step. Each is loaded by the process that asks for it.

    All samples of all sources come once, in a random order, before one comes again. They come without augmentation.

    Args:
        domains: the sources, with labels.
        rows: samples of a batch, over all ranks.
        seed: of the order.

    Raises:
        UserError: if the ranks cannot share a batch.
    """

    def __init__(self, domains: Sequence[Domain], rows: int, seed: int) -> None:
        if rows % world_size():
            raise UserError(f"{world_size()} ranks cannot share {rows} samples of the source equally")
        self.samples, self.rows, self.seed = JointDataset(domains, seed=seed), rows, seed
        self.ends = np.cumsum([len(domain) for domain in domains])

    @classmethod
    def of(cls, method: Method, key: str) -> "SourceReplay":
        """The replay of training samples of the source, as many in a step as a batch or window of the stream has.

        Args:
            method: whose data has them.
            key: the argument of the method that asks for it.

        Raises:
            UserError: if they are not there.
        """
        try:
            domains = method.data.source_domains("train")
        except (UserError, OSError) as error:
            raise UserError(
                f"model.{key} replays labelled samples of the source, which are not there ({sentence(error)}): give "
                f"model.{key} 0, or the source as data.source"
            ) from error
        return cls(domains, method.data.target_batch_size * method.data.stream.window, method.data.seed)

    def batch(self, step: int) -> Batch:
        """The rows of this rank in the batch of a step."""
        draws = []
        for position in own_rows(range(step * self.rows, (step + 1) * self.rows)):
            index, cycle = draw(self.seed, "replay", position, len(self.samples))
            domain = int(np.searchsorted(self.ends, index, side="right"))
            draws.append(Draw(domain, index - (int(self.ends[domain - 1]) if domain else 0), cycle))
        return collate(list(self.samples.__getitems__(draws)))
