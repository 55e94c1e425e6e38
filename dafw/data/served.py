"""What a method may know of the data that it trains on."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, cast

from dafw.data.augment import Augment, Word, made_augment
from dafw.data.batch import Batch
from dafw.data.domain import Domain
from dafw.data.roles import Evaluation, Split
from dafw.data.samples import summarise
from dafw.data.stream_plan import StreamPlan
from dafw.data.target_stream import TargetStream
from dafw.ranges import Checked
from dafw.samples import Samples

Stage = Literal["validate", "test", "predict"]


class ServedDomains(Checked):
    """The side of a datamodule that methods see. It holds no label of a target's training split.

    Attributes:
        seed: seed of the sample order and of the augmentation.
        steps_per_epoch: training steps between two validations.
        target_batch_size: samples a step from each target, over all ranks.
        target: names of the targets.
        stream: the stream of a test-time method.
        augment: the augmentation as a word or a function; ``None`` without one.
        flips: whether a mirrored image keeps its class, so that a word for ``augment`` may mirror images.
        size_is_side: whether the argument ``size`` is the side of all images in pixels, which a network may follow.
        made_of: further objects whose code decides what the samples are, such as another datamodule.
        train_domains: the domains of a training batch in their order: labelled ones, targets, held-out parts.
        one_image: whether training reads one image of the target alone.
    """

    config_key: ClassVar[str] = "data"
    seed: int
    steps_per_epoch: int
    target_batch_size: int
    target: list[str]
    train_domains: list[Domain]
    one_image: bool = False
    stream: TargetStream
    augment: Word | Augment | None
    made_of: Sequence[object] = ()
    flips: ClassVar[bool] = True
    size_is_side: ClassVar[bool] = False

    def augmentation(self) -> Augment | None:
        """The augmentation of training samples, see :func:`~dafw.data.augment.made_augment`."""
        return made_augment(self.augment, self.train_domains[0], flip=self.flips)

    def in_short(self) -> list[str]:
        """What a run says at its start of the domains that it was given: a line for each, or nothing."""
        return []

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
        """The numbers of those training batches with which a segment of the stream begins; empty without a stream."""
        raise NotImplementedError

    @property
    def stream_plan(self) -> StreamPlan:
        """The order of the stream."""
        raise NotImplementedError

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names of the classes that a model predicts, in their order."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes that a model predicts."""
        raise NotImplementedError

    @property
    def num_sources(self) -> int:
        """Number of labelled domains in a training batch."""
        raise NotImplementedError

    @property
    def has_unknown(self) -> bool:
        """Whether the target has classes of its own."""
        raise NotImplementedError

    @property
    def tested_targets(self) -> list[str]:
        """Names of the targets that have labels to test with."""
        raise NotImplementedError

    def source_domains(self, split: Split) -> list[Domain]:
        """The labelled samples of a split of all sources, whether the method's setting sees them or not.

        Statistics of the source are computed from them.

        Raises:
            UserError: if the files of a source are not there, or if it has no labels.
        """
        raise NotImplementedError

    def shuffled_once(
        self, domains: Sequence[Domain], count: int | None, batch_size: int, seed: int
    ) -> Iterable[Batch]:
        """Samples of some domains, each once, mixed in a random order, without augmentation.

        Every rank gets all of them.

        Args:
            domains: the domains.
            count: how many samples; all if ``None``, or if there are fewer.
            batch_size: samples a batch.
            seed: alone decides the order.
        """
        raise NotImplementedError

    def evaluations(self, stage: Stage) -> Sequence[Evaluation]:
        """The contents of the evaluation loaders of ``stage``, in their order."""
        raise NotImplementedError

    def samples(self, stage: str) -> dict[str, Samples]:
        """The samples that ``stage`` serves in short, by ``<domain>/<part>``.

        Args:
            stage: ``validate``, ``test``, ``predict``, or ``fit``, which serves the parts of training and all of these.
        """
        if stage != "fit":
            return self._evaluated(cast(Stage, stage))
        if self._summary is None or self._summary[0] is not self.train_domains:
            found: dict[str, Samples] = {}
            for domain in self.train_domains:
                one = self.one_image and domain.name not in self.labelled
                found[f"{domain.name}/{'one image' if one else 'training'}"] = summarise(domain)
            self._summary = self.train_domains, found | self._evaluated("validate") | self._evaluated("test")
        return self._summary[1]

    _summary: tuple[list[Domain], dict[str, Samples]] | None = None

    def _evaluated(self, stage: Stage) -> dict[str, Samples]:
        found: dict[str, Samples] = {}
        for one in self.evaluations(stage):
            if not one.role.startswith("source_train"):
                found[f"{one.domain.name}/{one.part}"] = summarise(one.domain.unlabelled())
        return found
