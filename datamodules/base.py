"""What every datamodule shares: joint training batches, evaluation loaders, checks of what it was asked for."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dafw.data.augment import Word, known_augment
from dafw.data.balanced import Pools, draw_balanced, rows_by_class
from dafw.data.batch import Batch
from dafw.data.domain import Domain
from dafw.data.joint import JointDataset
from dafw.data.rare_classes import rare_class_stream
from dafw.data.references import References, check_references
from dafw.data.roles import Split
from dafw.data.sampler import ExtraDraws, JointBatchSampler, Stream
from dafw.data.served import ServedDomains
from dafw.data.setting import DataRequest
from dafw.data.shared_memory import SharedMemoryCollator
from dafw.data.target_stream import TargetStream
from dafw.data.trained import trained_model
from dafw.errors import UserError, choose
from datamodules.evaluating import Evaluating
from datamodules.label_sets import ClassSets, LabelSets, compare_classes, find_label_sets, warn_of_untrained
from datamodules.pseudo_labels import relabelled
from datamodules.splits import hold_out, only_one
from datamodules.stream import Streaming, check_one_pass


class DomainDataModule(Evaluating, Streaming, ServedDomains, pl.LightningDataModule):
    """Serves domains: joint batches for training, whole splits for evaluation.

    The training split of a target has no labels: they are dropped before the dataset is made. Target labels exist in
    the evaluation loaders alone, for the test metrics and the oracle. A target may have no labels at all.

    The method in training says in a :class:`~dafw.data.setting.DataRequest` what it asks for. Its setting decides
    which domains are served: no split of a source to a method that sees no source, and no sample of a target in the
    training of a method that sees no target. ``prepare_data`` may prepare all domains, as when it caches images.

    A test-time method trains on a stream: the targets' test splits without labels and without ``augment``, each sample
    once, in batches of ``target_batch_size``, in the order of ``stream``. An epoch is the length of the stream.
    A method may hold out a share of each target's training samples: they form a stream of their own, with as many
    samples a step as the rest. A method may ask for class-balanced rows: they lie behind the random rows of each side.
    A subclass sets ``domain_names`` and ``class_names``, all classes of its data, and writes :meth:`load`. The samples
    that are served are those of :meth:`domain`: the classes of a side's label sets, numbered as a model predicts them.

    Args:
        source: labelled domain or domains.
        target: domain or domains to serve.
        batch_size: samples a step from each source domain, over all ranks together.
        target_batch_size: samples a step from each target domain, over all ranks; ``batch_size`` if ``None``.
        steps_per_epoch: training steps between two validations.
        eval_batch_size: samples a batch in evaluation, on each rank.
        num_workers: processes that load training data; 0 loads in the main process.
        augment: random transform of one training sample: a word (:mod:`dafw.data.transforms`), the class of a transform
            of torchvision v2 or of another ``torch.nn.Module``; in Python any function too.
        seed: seed of the sample order and of the augmentation.
        oracle: train on the *target's* labels instead of the source's: an upper bound, not adaptation.
        label_sets: which classes source and target share: ``closed`` (all), numbers or lists of ``common``,
            ``source_private`` and ``target_private`` classes, or one of the literature's splits by name; see
            :mod:`datamodules.label_sets`. Samples of other classes are left out.
        evidence_samples: source training samples that the density-ratio validators look at.
        evaluate_train: score the sources' training splits at each validation too, which may cost more than training.
        evaluate_test: score the targets' test splits at each validation too. A table needs it to show the test score of
            a checkpoint that another criterion than ``last`` selects.
        source_sampling: ``class_balanced`` draws as many samples of each class from a source, however many it has
            (UAN's, OVANet's and UniOT's code); ``None`` passes once over all samples before any comes again.
        stream: the stream of a test-time method: one of the words of :data:`~dafw.data.target_stream.WORDS`, or a
            :class:`~dafw.data.target_stream.TargetStream`. Domains that it visits become targets, for any method.
        stream_order: order of a target's samples in the stream of a test-time method: ``random``, a function of the
            seed and the target's name, or ``stored``, the order that the data has.
        images_per_domain: so many samples, spread over each target's test split, are its test split; ``None``: all.
        pseudo_labels: CSV file of ``dafw predict RUN --split all``, whose classes replace the labels of the sources.
        images: a file that lists them instead, see :class:`~datamodules.image_list.ImageList`.
    """

    domain_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    #: What is asked for while there is no method.
    default_request: DataRequest = DataRequest()
    #: Whether a target must be named. A datamodule that is the base of another one may serve its sources alone.
    needs_target: bool = True
    #: Whether no sample that validates or tests a source is one that trains.
    holds_out_source: bool = True

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        batch_size: int = 32,
        target_batch_size: int | None = None,
        steps_per_epoch: int = 200,
        eval_batch_size: int = 250,
        num_workers: int = 0,
        augment: Word | Callable[[Any], Any] | None = None,
        seed: int = 0,
        oracle: bool = False,
        label_sets: LabelSets | str = "closed",
        evidence_samples: int = 2000,
        evaluate_train: bool = False,
        evaluate_test: bool = True,
        source_sampling: Literal["class_balanced"] | None = None,
        stream: TargetStream | str = "continual",
        stream_order: Literal["random", "stored"] = "random",
        images_per_domain: int | None = None,
        pseudo_labels: str | None = None,
        images: str | None = None,
    ) -> None:
        super().__init__()
        self.made_for = trained_model()
        self.source = [source] if isinstance(source, str) else list(source)
        self.target = [target] if isinstance(target, str) else list(target)
        self.batch_size = batch_size
        self.target_batch_size = batch_size if target_batch_size is None else target_batch_size
        self.steps_per_epoch, self.eval_batch_size = steps_per_epoch, eval_batch_size
        self.num_workers, self.augment, self.seed, self.oracle = num_workers, known_augment(augment), seed, oracle
        self.label_sets, self.evidence_samples = find_label_sets(label_sets), evidence_samples
        self.evaluate_train, self.evaluate_test = evaluate_train, evaluate_test
        self.source_sampling = source_sampling and choose("source_sampling", source_sampling, ("class_balanced",))
        self.pseudo_labels = pseudo_labels
        self.train_domains: list[Domain] = []
        self._set_stream(stream, stream_order, images_per_domain, images)
        for name in (*self.source, *self.target):
            choose("domain", name, self.domain_names)
        least = {"batch_size": 1, "target_batch_size": 1, "steps_per_epoch": 1, "eval_batch_size": 1}
        least |= {"num_workers": 0, "evidence_samples": 1, "images_per_domain": 1}
        for key, lowest in least.items():
            if (given := getattr(self, key)) is not None and given < lowest:
                raise UserError(f"data.{key} must be at least {lowest}, not {given}")
        for key in ("source", "target"):
            names = getattr(self, key)
            if (not names and (key == "source" or self.needs_target)) or len(set(names)) < len(names):
                raise UserError(f"data.{key} must name at least one domain, and each once, not {names}")
        if set(self.source) & set(self.target):
            raise UserError(f'"{sorted(set(self.source) & set(self.target))[0]}" is both a source and a target')

    def load(self, name: str, split: Split) -> Domain:
        """The samples of one domain's split; their labels are ``None`` where a target has none.

        It is called more than once, and should be cheap after the first time.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load(name, split)")

    def view(self, name: str) -> Callable[[Any], Any]:
        """The named augmentation that a method asks for through ``Method.views``.

        Raises:
            UserError: if this datamodule has no augmentation of that name.
        """
        raise UserError(f'{type(self).__name__} has no augmentation "{name}", which the method asks for')

    def domain(self, name: str, split: Split) -> Domain:
        """The samples of one domain's split that its label sets have, with the labels of :attr:`known_names`.

        A class of the target alone has the label ``num_classes``, which stands for unknown.
        """
        domain = self.chosen_images(name, split, self.load(name, split))
        if self.pseudo_labels is not None and name in self.source:
            domain = relabelled(domain, split, self.pseudo_labels, self.class_names)
        if self.label_sets is None or domain.labels is None:
            return domain
        labels = domain.classes
        if labels is None:
            raise UserError(f"data.label_sets needs one class a sample, and those of {name} have labels of many parts")
        sets = self.class_sets
        known = {one: code for code, one in enumerate(sets.source)}
        served = sets.target if name in self.target else sets.source
        codes = {self.class_names.index(one): known.get(one, len(known)) for one in served}
        kept = np.flatnonzero(np.isin(labels, list(codes)))
        if not len(kept):
            raise UserError(f"the {split} split of {name} has no sample of the classes of data.label_sets")
        coded = np.asarray([codes[label] for label in labels[kept].tolist()], dtype=np.int64)
        return replace(domain.subset(kept), labels=coded)

    @property
    def class_sets(self) -> ClassSets:
        """The classes of source and target by name.

        Raises:
            UserError: if ``label_sets`` does not fit the data's classes.
        """
        if self.made_for is not None and not self.made_for.with_targets:
            return ClassSets(self.made_for.classes, (), ())
        if self.label_sets is None:
            return ClassSets(tuple(self.class_names), (), ())
        return self.label_sets.resolve(self.class_names)

    @property
    def known_names(self) -> tuple[str, ...]:
        """The classes of the source, which are those that a model predicts, in their order."""
        return self.class_sets.source

    @property
    def num_classes(self) -> int:
        """Number of classes of the source."""
        return len(self.known_names)

    @property
    def has_unknown(self) -> bool:
        """Whether the target has classes of its own, which are unknown to a model."""
        return bool(self.class_sets.target_private)

    @property
    def task(self) -> str:
        """The transfer, as in ``art,photo->sketch``."""
        return f"{','.join(self.source)}->{','.join(self.target)}"

    @property
    def num_sources(self) -> int:
        """Number of labelled domains in a training batch."""
        return len(self.target if self.oracle else self.source)

    @property
    def request(self) -> DataRequest:
        """What the method at work asks for; :attr:`default_request` while there is no method."""
        return DataRequest.of(self.trainer.lightning_module) if self.trainer is not None else self.default_request

    @property
    def sources(self) -> list[str]:
        """The sources that are served: none to a method that sees no source."""
        return self.source if self.request.setting.sees_source else []

    @property
    def training_targets(self) -> list[str]:
        """The targets that are served, unlabelled, in training: none to a method that sees no target."""
        return self.target if self.request.setting.sees_target else []

    @property
    def labelled(self) -> list[str]:
        """The domains whose labels train: the sources, or the targets of an oracle run."""
        return self.target if self.oracle else self.sources

    def setup(self, stage: str | None = None) -> None:
        """Loads the domains that ``stage`` needs, and checks them.

        Raises:
            UserError: for an oracle run of a method without a source, for a stream that is not passed exactly once,
                or what :meth:`check_label_sets` finds.
        """
        if self.oracle and not self.sources:
            setting = self.request.setting.name
            raise UserError(f"data.oracle trains on the target's labels, and a {setting} method learns from none")
        if self.oracle and self.has_unknown:
            raise UserError("data.oracle trains on the target's labels, of which data.label_sets leaves some unknown")
        if stage in (None, "fit") and self.request.setting.streams_target:
            check_one_pass(self.trainer, self.request.setting.name)
            self._plan = None
            self.train_domains = [self.domain(name, "test").unlabelled() for name in self.training_targets]
        elif stage in (None, "fit"):
            if self.sources:
                self.check_label_sets()
            targets = [self.domain(name, "train").unlabelled() for name in self.training_targets]
            if self.request.target_image is not None:
                targets = [only_one(targets, self.request.target_image, self.seed, self.target_batch_size)]
                self.one_image = True
            if self.request.references:
                targets = [self._with_references(target) for target in targets]
            held_out: list[Domain] = []
            if share := self.request.held_out:
                if self.oracle:
                    raise UserError("data.oracle trains on all of the target, of which the method holds samples out")
                targets, held_out = map(list, zip(*(hold_out(target, share) for target in targets), strict=True))
            labelled = [*map(self._labelled_domain, self.labelled)]
            self.train_domains = [*labelled, *targets, *held_out]
            if not self._rank()[0]:
                warn_of_untrained(labelled, self.known_names)

    def _labelled_domain(self, name: str) -> Domain:
        domain = self.domain(name, "train")
        if domain.labels is None:
            raise UserError(f"{name} has no labels, so that nothing can be learnt from it: make it a target")
        return domain

    def check_label_sets(self) -> None:
        """Compares the classes of the data with what ``label_sets`` says.

        Raises:
            UserError: naming a class that one side lacks although ``label_sets`` says it has it.
        """
        present = {name: self._present(name) for name in (*self.source, *self.target)}
        compare_classes(present, self.source, self.target, self.class_sets, self.label_sets is not None)

    def _present(self, name: str) -> set[str] | None:
        """The names of the classes that a domain's samples have; ``None`` if its labels do not say."""
        seen = name in self.source or name in self.training_targets
        classes = self.load(name, "train" if seen else "test").classes
        return None if classes is None else {self.class_names[index] for index in np.unique(classes)}

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def views(self) -> Mapping[str, Callable[[Any], Any]]:
        """The extra views that the method in training asks for."""
        return {name: self.view(name) for name in self.request.views}

    def train_dataloader(self) -> DataLoader[Any]:
        """Joint batches, ``steps_per_epoch`` of them each time it is iterated, from the step reached on.

        For a method that streams the targets, the batches of the stream from the step reached on.

        Raises:
            UserError: if a batch is larger than a domain, holds fewer samples than the method needs, or the ranks
                cannot share it equally.
        """
        rank, world_size = self._rank()
        request, targets = self.request, len(self.training_targets)
        if request.setting.streams_target:
            stream = JointDataset(self.train_domains, views=self.views(), seed=self.seed, maps=request.maps)
            return self._training_loader(stream, self.stream_sampler())
        request.check_rows((self.batch_size, len(self.labelled)), (self.target_batch_size, targets))
        num_held_out = targets if request.held_out else 0
        counts = [self.batch_size] * len(self.labelled) + [self.target_batch_size] * (targets + num_held_out)
        for domain, count in zip(self.train_domains, counts, strict=True):
            if count > len(domain):
                raise UserError(f"{domain.name} has {len(domain)} training samples, fewer than a batch of {count}")
            if count % world_size:
                raise UserError(f"{world_size} ranks cannot share a batch of {count} equally")
        balanced = request.balanced
        if balanced is not None and balanced.classes * balanced.per_class % world_size:
            shares = f"{balanced.classes} classes of {balanced.per_class} rows"
            raise UserError(f"{world_size} ranks cannot share {shares} equally")
        sampler = JointBatchSampler(
            [self._stream(domain, count) for domain, count in zip(self.train_domains, counts, strict=True)],
            seed=self.seed,
            steps_per_epoch=self.steps_per_epoch,
            steps_done=request.steps_done,
            rank=rank,
            world_size=world_size,
            extra_draws=None if balanced is None else self.balanced_rows,
            places=(len(self.labelled), len(self.labelled) + targets),
        )
        options: dict[str, Any] = {"augment": self.augmentation(), "views": self.views(), "seed": self.seed}
        options["references"] = request.references
        domains = [self.augmented_domain(domain) for domain in self.train_domains]
        data = JointDataset(domains, **options, maps=request.maps, num_held_out=num_held_out)
        return self._training_loader(data, sampler)

    def augmented_domain(self, domain: Domain) -> Domain:
        """A training domain with the inputs that ``augment`` and the views start from; its own unless overridden."""
        return domain

    def references(self, name: str, split: Split) -> References | None:
        """Images of the same places in another condition, for the samples of a split; ``None`` if the data has none."""
        return None

    def _with_references(self, target: Domain) -> Domain:
        """A target's training domain with its references. All of its samples must have one."""
        if target.references is None:
            target = replace(target, references=self.references(target.name, "train"))
        check_references(target, self.request.asker)
        return target

    def _stream(self, domain: Domain, count: int) -> Stream:
        """What is drawn from a training domain; ``source_sampling`` and rare classes concern those with labels."""
        rare = self.request.rare_classes
        if self.source_sampling is None and rare is not None and domain.labels is not None:
            return rare_class_stream(domain, count, self.num_classes, rare, self.masks_key(domain))
        if self.source_sampling is None or domain.labels is None:
            return Stream(domain.name, len(domain), count)
        if domain.classes is None:
            raise UserError(
                f"data.source_sampling {self.source_sampling} needs one class a sample, and {domain.name} has labels "
                "of many parts: leave it out"
            )
        return Stream(domain.name, len(domain), count, rows_by_class(domain.classes))

    def masks_key(self, domain: Domain) -> Any:
        """Plain values that change whenever a mask of a labelled domain changes, such as its files' sizes and times.

        What takes a pass over all masks is then kept in a file. ``None`` if there are no such values.
        """
        return None

    def _training_loader(self, data: JointDataset, sampler: Any) -> DataLoader[Any]:
        collate = SharedMemoryCollator(self.num_workers)
        return self._loader(data, sampler, collate, persistent_workers=self.num_workers > 0)

    def balanced_rows(self) -> ExtraDraws:
        """The function that draws a batch's class-balanced rows, by the pseudo-labels that the method has now."""
        balanced, first = self.request.balanced, len(self.labelled)
        assert balanced is not None
        targets = [np.asarray(labels) for labels in balanced.target_labels()]
        sizes = [len(domain) for domain in self.train_domains[first : first + len(self.training_targets)]]
        if [len(labels) for labels in targets] != sizes:
            raise ValueError(f"the targets have {sizes} training samples, not {[len(labels) for labels in targets]}")
        pools = Pools.of([np.asarray(domain.labels) for domain in self.train_domains[:first]], targets)
        return lambda step: draw_balanced(pools, self.seed, step, balanced.classes, balanced.per_class)

    def _loader(self, data: JointDataset, sampler: Any, collate: Any, **options: Any) -> DataLoader[Any]:
        options |= {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(data, batch_sampler=sampler, collate_fn=collate, **options)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies the batch without waiting for the copy."""
        return batch.to(device, non_blocking=True)
