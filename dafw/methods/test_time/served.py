"""What was predicted for each sample of a stream, before the stream went on."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from dafw.data.domain import Domain
from dafw.data.stream_plan import StreamPlan
from dafw.errors import UserError
from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.distributed import gather_rows, sum_over_ranks


class ServedPredictions(VariableLengthBuffers):
    """Class scores by position in a stream. They are buffers: a checkpoint holds them. Every rank has those of all.

    A sample is known by a hash of its domain's name, of its own stable name and of how often it came before. So it is
    found in a part of its domain, in another order, and in another process.

    Attributes:
        keys: (N,) int64, the hash of the sample at each position.
        done: (N,) bool, whether the position has been served.
        logits: (N, K), what it was served; zeros before.
        step: (N,) int64, the training step that served it, from 0 on; -1 before.
        used: (N,) bool, whether the row counted in the update of that step.
        start_classes: (N,) int64, the class that the start model predicts, -1 before a test asked it. It is no buffer.
    """

    variable_buffers = ("keys", "done", "logits", "step", "used")
    keys: Tensor
    done: Tensor
    logits: Tensor
    step: Tensor
    used: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.empty(0, dtype=torch.int64))
        self.register_buffer("done", torch.empty(0, dtype=torch.bool))
        self.register_buffer("logits", torch.empty(0, 0))
        self.register_buffer("step", torch.empty(0, dtype=torch.int64))
        self.register_buffer("used", torch.empty(0, dtype=torch.bool))
        self.start_classes = torch.empty(0, dtype=torch.int64)
        self._rows: dict[int, int] | None = None

    @property
    def confidence(self) -> Tensor:
        """(N,) the greatest class probability of what was served."""
        return self.logits.softmax(1).amax(1) if self.logits.numel() else self.logits.new_zeros(len(self.keys))

    def open(self, domains: Sequence[Domain], plan: StreamPlan) -> None:
        """Makes room for all positions of a stream, unless a checkpoint has brought it.

        Args:
            domains: the domains of the stream.
            plan: its order.

        Raises:
            UserError: if two samples have the same name, or if the checkpoint's stream has other samples or another
                order.
        """
        keys = stream_keys(domains, plan)
        if len(set(keys)) < len(keys):
            names = ", ".join(domain.name for domain in domains)
            raise UserError(f"two test samples of {names} have the same name, and a stream serves each by its name")
        found = torch.tensor(keys, dtype=torch.int64, device=self.keys.device)
        if not len(self.keys):
            self.keys, self.done = found, torch.zeros_like(found, dtype=torch.bool)
            self.logits = self.logits.new_zeros(len(found), self.logits.shape[1])
            self.step, self.used = torch.full_like(found, -1), torch.zeros_like(self.done)
        elif not torch.equal(self.keys, found):
            raise UserError("the checkpoint to go on from served a stream of other samples than the data has now")
        self._rows = None

    def is_of(self, domains: Sequence[Domain], plan: StreamPlan) -> bool:
        """Whether all of this stream, in this order, was served."""
        return bool(self.done.all()) and self.keys.tolist() == stream_keys(domains, plan)

    @torch.no_grad()
    def keep(self, place: Tensor, logits: Tensor, step: int, used: Tensor) -> None:
        """Keeps what a batch was served. All ranks call it together, each with its share of the batch.

        Args:
            place: (n,) int64, positions of the rows in the stream.
            logits: (n, K).
            step: number of the training step.
            used: (n,) bool, which rows count in its update.
        """
        if self.logits.shape[1] != logits.shape[1]:
            self.logits = self.logits.new_zeros(len(self.keys), logits.shape[1])
        rows = gather_rows(place)
        self.logits.index_copy_(0, rows, gather_rows(logits).to(self.logits))
        self.done.index_fill_(0, rows, True)
        self.step.index_fill_(0, rows, step)
        self.used.index_copy_(0, rows, gather_rows(used))

    @torch.no_grad()
    def note_start(self, positions: Tensor, logits: Tensor) -> None:
        """Notes what the start model predicts.

        Args:
            positions: (n,) int64, positions in the stream.
            logits: (n, K).
        """
        if len(self.start_classes) != len(self.keys):
            self.start_classes = torch.full_like(self.keys, -1)
        self.start_classes[positions] = logits.argmax(1)

    def share_start(self) -> None:
        """Gives every rank what the others noted of the start model. All ranks call it together."""
        if len(self.start_classes) != len(self.keys):
            self.start_classes = torch.full_like(self.keys, -1)
        self.start_classes = sum_over_ranks(self.start_classes + 1) - 1

    def of(self, domain: Domain, index: Tensor) -> Tensor:
        """What some samples were served, (n, K). A sample that was served more than once has its latest row.

        Args:
            domain: their domain, or a part of it. If it has ``visits``, they say which row of a sample is meant.
            index: (n,) int64, their positions in it.

        Raises:
            UserError: naming a sample that the stream has not served.
        """
        return self.logits[self.positions(domain, index)]

    def positions(self, domain: Domain, index: Tensor) -> Tensor:
        """The positions in the stream of some samples, (n,) int64; arguments and errors are those of :meth:`of`."""
        if self._rows is None:
            self._rows = {key: row for row, key in enumerate(self.keys.tolist())}
        positions = index.tolist()
        rows = [self._row(domain, position) for position in positions]
        chosen = torch.tensor(rows, device=self.keys.device)
        served = (self.done[chosen] & (chosen >= 0)).tolist() if len(self.keys) else [False] * len(rows)
        if not all(served):
            sample = domain.id(positions[served.index(False)])
            raise UserError(
                f"the stream has not served {sample} of {domain.name}, and a test-time method predicts what its stream "
                "brings: let dafw fit pass over the whole stream of this target"
            )
        return chosen

    def _row(self, domain: Domain, index: int) -> int:
        """The position at which a sample was served, -1 for none."""
        assert self._rows is not None
        if domain.visits is not None:
            return self._rows.get(sample_key(domain, index, int(domain.visits[index])), -1)
        found, visit = -1, 0
        while (row := self._rows.get(sample_key(domain, index, visit), -1)) >= 0:
            found, visit = row, visit + 1
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._rows = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


def stream_keys(domains: Sequence[Domain], plan: StreamPlan) -> list[int]:
    """The key of the sample at each position of a stream."""
    rows = zip(*(part.tolist() for part in plan.rows), strict=True)
    return [sample_key(domains[domain], index, visit) for domain, index, visit in rows]


def sample_key(domain: Domain, index: int, visit: int = 0) -> int:
    """A hash of a sample's domain, stable name and number of earlier visits, as a 64-bit number with a sign."""
    parts = [domain.name, domain.id(index), *([str(visit)] if visit else [])]
    name = "\0".join(parts).encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little", signed=True)
