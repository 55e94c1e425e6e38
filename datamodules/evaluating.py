"""The part of every datamodule that serves evaluation: whole splits, and single images."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from dafw.data.batch import collate
from dafw.data.domain import Domain, join
from dafw.data.joint import JointDataset
from dafw.data.numbers import Numbers
from dafw.data.roles import Evaluation, Split
from dafw.data.sampler import Draw, ShardSampler
from dafw.data.setting import DataRequest
from dafw.errors import UserError


class Evaluating:
    """What is evaluated: the domains of each stage with their loaders, and the preparation of an image."""

    source: list[str]
    target: list[str]
    seed: int
    eval_batch_size: int
    evidence_samples: int
    evaluate_train: bool
    evaluate_test: bool
    #: What of a target is predicted: its ``test`` split or ``all`` of it; ``None``: see :meth:`predicted`.
    predict_split: Literal["test", "all"] | None = None

    if TYPE_CHECKING:

        @property
        def request(self) -> DataRequest: ...  # noqa: D102
        @property
        def sources(self) -> list[str]: ...  # noqa: D102
        @property
        def training_targets(self) -> list[str]: ...  # noqa: D102
        def domain(self, name: str, split: Split) -> Domain: ...  # noqa: D102
        def tested(self, name: str) -> Domain: ...  # noqa: D102
        def streamed(self, name: str) -> Domain: ...  # noqa: D102
        def _rank(self) -> tuple[int, int]: ...
        def _loader(self, data: JointDataset, sampler: Any, collate: Any, **options: Any) -> DataLoader[Any]: ...

    def evaluation_transform(self) -> Callable[[Any], Any]:
        """What prepares one input for a trained model, exactly as evaluation does.

        Returns:
            A function. It takes the path of a file or an image of Pillow. It returns what :meth:`load` gives for such a
            file in evaluation, ``x`` of one sample: for an image a uint8 tensor (3, H, W). It raises ``UserError`` for
            a file that cannot be read; ``CorruptImage``, one of its kinds, for one that cannot be decoded.

        Raises:
            UserError: if this datamodule does not say how a file is prepared.
        """
        raise UserError(
            f"{type(self).__name__} does not say how an image is prepared: define evaluation_transform(), which "
            "returns a function from a file to an input"
        )

    def original_size(self, sample: str) -> tuple[int, int] | None:
        """Height and width of the file that a sample was scaled from, to which a predicted mask is scaled back.

        Args:
            sample: the name of a sample, or the path of any file.

        Returns:
            ``None`` if there is no such file, or a sample does not show all of it.
        """
        return None

    def numbers(self, domain: str) -> Numbers | None:
        """How the annotation file of a domain calls images and classes, for predicted boxes; ``None`` without one."""
        return None

    def evaluations(self, stage: Literal["validate", "test", "predict"]) -> list[Evaluation]:
        """The contents of the evaluation loaders of ``stage``, in their order.

        A validation scores the targets' test splits too, unless ``evaluate_test`` is false. A method that streams the
        targets has no validation: no sample of the stream has been served before the stream brings it. For a prediction
        see :meth:`predicted`.
        """
        if stage == "predict":
            return [self.predicted(name) for name in self.target]
        if stage == "test":
            streams = self.request.setting.streams_target
            return [Evaluation("source_test", self.domain(name, "test")) for name in self.sources] + [
                Evaluation("target_test", self.streamed(name) if streams else self.domain(name, "test"))
                for name in self.target
            ]
        if self.request.setting.streams_target:
            return []
        shown = self.sources if self.training_targets and self.request.evidence else []
        train = [self.domain(name, "train").unlabelled() for name in shown]
        share = max(1, -(-sum(map(len, train)) // self.evidence_samples))
        scored = self.sources if self.evaluate_train else []
        named = self.target if self.evaluate_test else []
        tested = [Evaluation("target_test", self.domain(name, "test")) for name in named]
        return [
            *(Evaluation("source_train_labelled", self.domain(name, "train")) for name in scored),
            *(Evaluation("source_train", domain.subset(range(0, len(domain), share))) for domain in train),
            *(Evaluation("source_val", self.domain(name, "val")) for name in self.sources),
            *(Evaluation("target_val", self.domain(name, "val")) for name in self.target),
            *(evaluation for evaluation in tested if evaluation.is_labelled),
        ]

    @property
    def tested_targets(self) -> list[str]:
        """Names of the targets that have labels to test with."""
        return [name for name in self.target if self.domain(name, "test").labels is not None]

    def predicted(self, name: str) -> Evaluation:
        """The samples of a target that a prediction is made of, without labels.

        These are its test split, on which a test measures the same model. Of a target without labels, which no test
        measures, they are its splits together, unless the method predicts the stream that it has served.
        :attr:`predict_split` overrides both.

        Raises:
            UserError: for all samples of a target whose test split was served as a stream.
        """
        test, setting = self.tested(name), self.request.setting
        if self.predict_split == "all" and setting.streams_target:
            raise UserError(
                f"a {setting.name} run predicts what its stream has served, which is the test split: give --split test"
            )
        whole = self.predict_split == "all" or (
            self.predict_split is None and test.labels is None and not setting.streams_target
        )
        if not whole:
            return Evaluation("target_test", test.unlabelled())
        parts = {"train": self.domain(name, "train"), "val": self.domain(name, "val"), "test": test}
        return Evaluation("target_all", join(parts, self._served))

    def _served(self, domain: Domain) -> Any:
        """The inputs of the first evaluation batch."""
        return next(iter(self.evaluation_loader(domain.unlabelled(), shard=False))).x

    def source_domains(self, split: Split) -> list[Domain]:
        """See :meth:`dafw.data.served.ServedDomains.source_domains`."""
        domains = [self.domain(name, split) for name in self.source]
        for domain in domains:
            if domain.labels is None:
                raise UserError(f"{domain.name} has no labels")
        return domains

    def shuffled_once(
        self, domains: Sequence[Domain], count: int | None, batch_size: int, seed: int
    ) -> DataLoader[Any]:
        """See :meth:`dafw.data.served.ServedDomains.shuffled_once`."""
        all_draws = [Draw(number, index, 0) for number, domain in enumerate(domains) for index in range(len(domain))]
        order = np.random.default_rng(seed).permutation(len(all_draws))[:count].tolist()
        draws = [all_draws[position] for position in order]
        batches = [draws[start : start + batch_size] for start in range(0, len(draws), batch_size)]
        return self._loader(JointDataset(domains), batches, collate)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of ``evaluations("validate")``."""
        return [self.evaluation_loader(evaluation.domain) for evaluation in self.evaluations("validate")]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of ``evaluations("test")``."""
        return [self.evaluation_loader(evaluation.domain) for evaluation in self.evaluations("test")]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each target, see :meth:`predicted`."""
        return [self.evaluation_loader(evaluation.domain) for evaluation in self.evaluations("predict")]

    def evaluation_loader(self, domain: Domain, *, shard: bool = True) -> DataLoader[Any]:
        """Every sample of ``domain`` once, in order, without augmentation.

        They come in the domain's own order, which may be by class. A transductive method, whose predictions depend on
        the whole batch, gets them in a random order that is a function of the seed and the domain.

        Args:
            domain: what to serve.
            shard: each rank serves its share; otherwise each serves all of it.
        """
        rank, world_size = self._rank() if shard else (0, 1)
        if len(domain) < world_size:
            raise UserError(f"{world_size} ranks cannot share the {len(domain)} samples of {domain.name} to evaluate")
        mixed = (self.seed, domain.name) if self.request.mixed_evaluation else None
        sampler = ShardSampler(len(domain), self.eval_batch_size, mixed=mixed, rank=rank, world_size=world_size)
        return self._loader(JointDataset([domain]), sampler, collate)
