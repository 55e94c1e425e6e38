"""What a method may know of the data that it trains on."""

from typing import ClassVar

from dafw.data.domain import Domain
from dafw.ranges import Checked


class ServedDomains(Checked):
    """The side of a datamodule that methods see. It holds no label of a target's training split.

    Attributes:
        seed: seed of the sample order and of the augmentation.
        steps_per_epoch: training steps between two validations.
        target_batch_size: samples a step from each target, over all ranks.
        target: names of the targets.
        train_domains: the domains of a training batch in their order: labelled ones, targets, held-out parts.
    """

    config_key: ClassVar[str] = "data"
    seed: int
    steps_per_epoch: int
    target_batch_size: int
    target: list[str]
    train_domains: list[Domain]

    @property
    def labelled(self) -> list[str]:
        """Names of the domains whose labels train."""
        raise NotImplementedError

    @property
    def sources(self) -> list[str]:
        """Names of the sources that are served."""
        raise NotImplementedError

    @property
    def training_targets(self) -> list[str]:
        """Names of the targets that are served, unlabelled, in training."""
        raise NotImplementedError

    @property
    def stream_starts(self) -> list[int]:
        """The numbers of those training batches with which a target begins; empty unless the targets are streamed."""
        raise NotImplementedError

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names of the classes that a model predicts, in their order."""
        raise NotImplementedError

    @property
    def has_unknown(self) -> bool:
        """Whether the target has classes of its own."""
        raise NotImplementedError
