"""The stream that a test-time method trains on: each test sample of the targets once."""

from collections.abc import Callable, Sequence
from typing import Any

from dafw.data.domain import Domain
from dafw.data.sampler import Stream, StreamSampler
from dafw.errors import UserError


def check_one_pass(trainer: Any, setting: str) -> None:
    """Compares the length of a training with that of the stream.

    Args:
        trainer: the trainer at work; ``None`` if there is none.
        setting: name of the method's setting.

    Raises:
        UserError: if the trainer would pass the stream more than once, or only in part.
    """
    if trainer is not None and trainer.max_epochs != 1:
        raise UserError(
            f"a {setting} method passes once over its stream: give trainer.max_epochs 1, not {trainer.max_epochs}"
        )
    if trainer is not None and trainer.max_steps > 0:
        raise UserError(f"a {setting} method passes over its whole stream: give no trainer.max_steps")


def stream_sampler(
    domains: Sequence[Domain],
    batch_size: int,
    seed: int | None,
    steps_done: Callable[[], int],
    shares: tuple[int, int],
) -> StreamSampler:
    """What gives the batches of the stream.

    Args:
        domains: the targets' test splits.
        batch_size: samples a batch, over all ranks.
        seed: gives each domain a random order, together with its name; ``None`` for the order that it has.
        steps_done: returns the number of batches trained so far.
        shares: this rank, and the number of ranks.

    Raises:
        UserError: if the ranks cannot share every batch equally.
    """
    rank, world_size = shares
    for domain in domains:
        last = len(domain) % batch_size or batch_size
        for what, size in (("a batch", batch_size), ("the last batch", last)):
            if size % world_size:
                raise UserError(
                    f"{world_size} ranks cannot share {what} of {size} of the {len(domain)} samples of {domain.name} "
                    "equally: give another data.target_batch_size or trainer.devices"
                )
    streams = [Stream(domain.name, len(domain), batch_size) for domain in domains]
    return StreamSampler(streams, seed=seed, steps_done=steps_done, rank=rank, world_size=world_size)
