"""The part of every datamodule that serves a stream: the targets' test samples in the order in which they come."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from dafw.data.batch import Batch, collate
from dafw.data.domain import Domain
from dafw.data.joint import JointDataset
from dafw.data.roles import Split
from dafw.data.setting import DataRequest
from dafw.data.stream_plan import StreamPlan, StreamSampler, plan_of
from dafw.data.target_stream import TargetStream
from dafw.data.trained import looks_for_files
from dafw.errors import UserError, choose
from datamodules.image_list import ImageList


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


def check_shares(plan: StreamPlan, world_size: int) -> None:
    """Checks that the ranks share every batch of a stream equally.

    Raises:
        UserError: naming a batch that they cannot share.
    """
    lengths = [*plan.starts[1:].tolist(), len(plan)]
    for start, end, name in zip(plan.starts.tolist(), lengths, plan.segments, strict=True):
        batches = plan.sizes()[(plan.batches >= start) & (plan.batches < end)]
        for what, size in (("a batch", int(batches[0])), ("the last batch", int(batches[-1]))):
            if size % world_size:
                raise UserError(
                    f"{world_size} ranks cannot share {what} of {size} of the {end - start} samples of {name} "
                    "equally: give another data.target_batch_size or trainer.devices"
                )


class Streaming:
    """What a test-time method trains on: each sample of the stream once, without its label."""

    target: list[str]
    target_batch_size: int
    seed: int
    stream: TargetStream
    stream_order: str
    images_per_domain: int | None
    image_list: ImageList | None = None
    domain_names: tuple[str, ...]
    _plan: StreamPlan | None = None

    if TYPE_CHECKING:

        @property
        def request(self) -> DataRequest: ...  # noqa: D102
        def domain(self, name: str, split: Split) -> Domain: ...  # noqa: D102
        def _rank(self) -> tuple[int, int]: ...
        def _loader(self, data: JointDataset, sampler: Any, collate: Any, **options: Any) -> DataLoader[Any]: ...

    def _set_stream(
        self, given: TargetStream | str, order: str, images_per_domain: int | None, images: str | None
    ) -> None:
        """Takes the stream, and adds the domains that it visits to the targets.

        Raises:
            UserError: for an unknown word, for a window of batches of more than one sample, or for a list of images
                that cannot be read or is given beside their number.
        """
        self.stream_order = choose("stream_order", order, ("random", "stored"))
        self.images_per_domain = images_per_domain
        if images is not None and images_per_domain is not None:
            raise UserError("data.images and data.images_per_domain both choose the images of a target: give one")
        if images is not None and looks_for_files():
            self.image_list = ImageList(images)
        self._chosen_images: dict[str, NDArray[np.int64]] = {}
        self.stream = TargetStream.named(given)
        self.asked_targets = list(self.target)
        self.target = self.stream.domains(self.target)
        if self.stream.window > 1 and self.target_batch_size > 1:
            raise UserError(
                f"data.stream.window is for batches of one sample: give data.target_batch_size 1, not "
                f"{self.target_batch_size}, or leave the window out"
            )

    def chosen_images(self, name: str, split: Split, domain: Domain) -> Domain:
        """The listed samples of a target's test split, or ``images_per_domain`` of them; of another split all.

        The latter are spread evenly over the split. A folder's samples come class by class, so the first of them would
        be of a few classes alone.
        """
        limit = self.images_per_domain
        if self.image_list is not None and split == "test" and name in self.target:
            if name not in self._chosen_images:
                self._chosen_images[name] = self.image_list.positions(domain)
            return domain.subset(self._chosen_images[name])
        if limit is None or split != "test" or name not in self.target or len(domain) <= limit:
            return domain
        return domain.subset([number * len(domain) // limit for number in range(limit)])

    @property
    def stream_plan(self) -> StreamPlan:
        """The order of the stream that is served, see :func:`~dafw.data.stream_plan.plan_of`.

        The labels of a correlated stream decide its order, and go no further.
        """
        if self._plan is None:
            domains = [self.domain(name, "test") for name in self.target]
            seed = self.seed if self.stream_order == "random" else None
            self._plan = plan_of(self.stream, self.asked_targets, domains, seed=seed, batch_size=self.target_batch_size)
        return self._plan

    @property
    def stream_starts(self) -> list[int]:
        """The numbers of those training batches with which a segment of the stream begins, in a mixed one the first.

        It is empty unless the targets are streamed.
        """
        if not self.request.setting.streams_target:
            return []
        return self.stream_plan.first_batches if self.stream.has_shifts else [0]

    def stream_sampler(self) -> StreamSampler:
        """What gives this rank's part of the stream's batches.

        Raises:
            UserError: if the ranks cannot share every batch equally.
        """
        rank, world_size = self._rank()
        check_shares(self.stream_plan, world_size)
        return StreamSampler(self.stream_plan, steps_done=self.request.steps_done, rank=rank, world_size=world_size)

    def replay(self) -> Iterable[Batch]:
        """The part of the stream's batches that this rank has, from the first one on, without a method's views."""
        domains = [self.domain(name, "test").unlabelled() for name in self.target]
        rank, world_size = self._rank()
        sampler = StreamSampler(self.stream_plan, rank=rank, world_size=world_size)
        return self._loader(JointDataset(domains), sampler, collate)

    def streamed(self, name: str) -> Domain:
        """The samples of a target that the stream serves, each as often as it comes, with their labels.

        The domain's ``visits`` say how often each came before.
        """
        index, visit = self.stream_plan.served(self.target.index(name))
        found = self.domain(name, "test")
        if len(index) == len(found) and not visit.any():
            return found
        return replace(found.subset(index), visits=visit)

    def tested(self, name: str) -> Domain:
        """The test samples of a domain; those of a stream that it serves, each once."""
        found = self.domain(name, "test")
        if not self.request.setting.streams_target or name not in self.target:
            return found
        index = np.unique(self.stream_plan.served(self.target.index(name))[0])
        return found if len(index) == len(found) else found.subset(index)
