"""What was predicted for each sample of a stream, before the stream went on."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from dafw.data.domain import Domain
from dafw.errors import UserError
from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.distributed import gather_rows


class ServedPredictions(VariableLengthBuffers):
    """Class scores by sample. They are buffers, so a checkpoint holds them; every rank has those of all ranks.

    A sample is known by a hash of its domain's name and its own stable name, so it is found in a part of its domain,
    in another order, and in another process.

    Attributes:
        keys: (N,) int64, the hash of each sample of the stream.
        done: (N,) bool, whether the sample has been served.
        logits: (N, K), what it was served; zeros before.
    """

    variable_buffers = ("keys", "done", "logits")
    keys: Tensor
    done: Tensor
    logits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.empty(0, dtype=torch.int64))
        self.register_buffer("done", torch.empty(0, dtype=torch.bool))
        self.register_buffer("logits", torch.empty(0, 0))
        self._first = torch.empty(0, dtype=torch.int64)
        self._rows: dict[int, int] | None = None

    def open(self, domains: Sequence[Domain]) -> None:
        """Makes room for all samples of a stream, unless a checkpoint has brought it.

        Args:
            domains: the domains of the stream, in its order.

        Raises:
            UserError: if two samples have the same name, or if the checkpoint's stream has other samples.
        """
        keys = [sample_key(domain, index) for domain in domains for index in range(len(domain))]
        if len(set(keys)) < len(keys):
            names = ", ".join(domain.name for domain in domains)
            raise UserError(f"two test samples of {names} have the same name, and a stream serves each by its name")
        found = torch.tensor(keys, dtype=torch.int64, device=self.keys.device)
        if not len(self.keys):
            self.keys, self.done = found, torch.zeros_like(found, dtype=torch.bool)
            self.logits = self.logits.new_zeros(len(found), self.logits.shape[1])
        elif not torch.equal(self.keys, found):
            raise UserError("the checkpoint to go on from served a stream of other samples than the data has now")
        sizes = torch.tensor([len(domain) for domain in domains])
        self._first, self._rows = (sizes.cumsum(0) - sizes).to(self.keys.device), None

    @torch.no_grad()
    def keep(self, domain: Tensor, index: Tensor, logits: Tensor) -> None:
        """Keeps what a batch was served. All ranks call it together, each with its share of the batch.

        Args:
            domain: (n,) int64, positions of the rows' domains in the stream.
            index: (n,) int64, positions of the rows in their domains.
            logits: (n, K).
        """
        if self.logits.shape[1] != logits.shape[1]:
            self.logits = self.logits.new_zeros(len(self.keys), logits.shape[1])
        rows = gather_rows(self._first[domain] + index)
        self.logits.index_copy_(0, rows, gather_rows(logits).to(self.logits))
        self.done.index_fill_(0, rows, True)

    def of(self, domain: Domain, index: Tensor) -> Tensor:
        """What some samples were served, (n, K).

        Args:
            domain: their domain, or a part of it.
            index: (n,) int64, their positions in it.

        Raises:
            UserError: naming a sample that the stream has not served.
        """
        if self._rows is None:
            self._rows = {key: row for row, key in enumerate(self.keys.tolist())}
        positions = index.tolist()
        rows = [self._rows.get(sample_key(domain, position), -1) for position in positions]
        chosen = torch.tensor(rows, device=self.keys.device)
        served = (self.done[chosen] & (chosen >= 0)).tolist() if len(self.keys) else [False] * len(rows)
        if not all(served):
            sample = domain.id(positions[served.index(False)])
            raise UserError(
                f"the stream has not served {sample} of {domain.name}, and a test-time method predicts what its stream "
                "brings: let dafw fit pass over the whole stream of this target"
            )
        return self.logits[chosen]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._rows = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


def sample_key(domain: Domain, index: int) -> int:
    """A hash of a sample's domain and stable name, as a 64-bit number with a sign."""
    name = f"{domain.name}\0{domain.id(index)}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little", signed=True)
