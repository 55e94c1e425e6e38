"""What every datamodule shares: joint training batches, evaluation loaders, checks of what it was asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dafw.data.balanced import Pools, draw_balanced
from dafw.data.batch import Batch, collate
from dafw.data.domain import Domain
from dafw.data.joint import JointDataset
from dafw.data.sampler import ExtraDraws, JointBatchSampler, ShardSampler, Stream
from dafw.data.shared_memory import SharedMemoryCollator
from dafw.errors import UserError, choose
from datamodules.label_sets import ClassSets, LabelSets, find_label_sets

Split = Literal["train", "val", "test"]
Role = Literal["source_train", "source_train_labelled", "source_val", "target_val", "source_test", "target_test"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation loader's content: a domain's split and what it is for."""

    role: Role
    domain: Domain


def hold_out(domain: Domain, share: float) -> tuple[Domain, Domain]:
    """A domain in two that share no sample: the rest, and ``share`` of it, chosen by a hash of the samples' names.

    Their order, which may be that of the classes, has no part in it.
    """
    marks = [blake2b(domain.id(index).encode(), digest_size=8).digest() for index in range(len(domain))]
    order = sorted(range(len(domain)), key=marks.__getitem__)
    count = int(len(domain) * share)
    rest, held = (domain.subset(sorted(part)) for part in (order[count:], order[:count]))
    return rest, replace(held, name=f"{domain.name}/held-out")


class DomainDataModule(pl.LightningDataModule):
    """Serves domains: joint batches for training, whole splits for evaluation.

    The training split of a target has no labels: they are dropped before the dataset is made. Target labels
    exist in the evaluation loaders alone, for the test metrics and the oracle.

    To a source-free method it serves the targets alone: no split of a source is loaded, whose names only name the task.
    To a generalization method it serves labelled sources alone, ``batch_size`` samples of each in every batch: no
    sample of a target enters training, not even without its label. What ``prepare_data`` makes beforehand, such as a
    cache of decoded images, is of all domains.

    A method with a ``held_out`` share gets that share of each target's training samples as a stream of its own, as many
    a step as of the rest. One with ``balanced`` rows gets them behind the random rows of each side: the source's by
    their labels, the target's by what the method takes for their labels.

    A subclass sets ``domain_names`` and ``class_names``, all classes of its data, and writes :meth:`load`. What is
    served is :meth:`domain`: the classes of a side's label sets, numbered as a model predicts them.

    Args:
        source: labelled domain or domains.
        target: domain or domains to serve.
        batch_size: samples a step from each source domain, over all ranks together.
        target_batch_size: samples a step from each target domain, over all ranks; ``batch_size`` if ``None``.
        steps_per_epoch: training steps between two validations.
        eval_batch_size: samples a batch in evaluation, on each rank.
        num_workers: processes that load training data; 0 loads in the main process.
        augment: random transform of one training input; see ``dafw.data.transforms``.
        seed: seed of the sample order and of the augmentation.
        oracle: train on the *target's* labels instead of the source's: an upper bound, not adaptation.
        label_sets: which classes source and target share: ``closed`` (all), numbers or lists of ``common``,
            ``source_private`` and ``target_private`` classes, or one of the literature's splits by name; see
            :mod:`datamodules.label_sets`. Samples of other classes are left out.
        evidence_samples: source training samples that the density-ratio validators look at.
        evaluate_train: score the sources' training splits at each validation too, which may cost more than training.
    """

    domain_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

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
        augment: Callable[[Any], Any] | None = None,
        seed: int = 0,
        oracle: bool = False,
        label_sets: LabelSets | str = "closed",
        evidence_samples: int = 2000,
        evaluate_train: bool = False,
    ) -> None:
        super().__init__()
        self.source = [source] if isinstance(source, str) else list(source)
        self.target = [target] if isinstance(target, str) else list(target)
        self.batch_size = batch_size
        self.target_batch_size = batch_size if target_batch_size is None else target_batch_size
        self.steps_per_epoch, self.eval_batch_size = steps_per_epoch, eval_batch_size
        self.num_workers, self.augment, self.seed, self.oracle = num_workers, augment, seed, oracle
        self.label_sets, self.evidence_samples = find_label_sets(label_sets), evidence_samples
        self.evaluate_train = evaluate_train
        for name in (*self.source, *self.target):
            choose("domain", name, self.domain_names)
        least = {"batch_size": 1, "target_batch_size": 1, "steps_per_epoch": 1, "eval_batch_size": 1}
        for key, lowest in (least | {"num_workers": 0, "evidence_samples": 1}).items():
            if getattr(self, key) < lowest:
                raise UserError(f"data.{key} must be at least {lowest}, not {getattr(self, key)}")
        for key in ("source", "target"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise UserError(f"data.{key} must name at least one domain, and each once, not {names}")
        if set(self.source) & set(self.target):
            raise UserError(f'"{sorted(set(self.source) & set(self.target))[0]}" is both a source and a target')

    def load(self, name: str, split: Split) -> Domain:
        """The labelled samples of one domain's split. Called more than once: cheap after the first time."""
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
        domain = self.load(name, split)
        if self.label_sets is None or domain.labels is None:
            return domain
        if len(domain.labels) and np.ndim(domain.labels[0]):
            raise UserError(f"data.label_sets needs one class a sample, and those of {name} have labels of many parts")
        sets = self.class_sets
        known = {one: code for code, one in enumerate(sets.source)}
        served = sets.target if name in self.target else sets.source
        codes = {self.class_names.index(one): known.get(one, len(known)) for one in served}
        labels = np.asarray(domain.labels, dtype=np.int64)
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
    def setting(self) -> str:
        """What the method at work may see; nothing said if there is none."""
        return str(getattr(self.trainer.lightning_module, "setting", "")) if self.trainer is not None else ""

    @property
    def sources(self) -> list[str]:
        """The sources that are served: none to a source-free method."""
        return [] if self.setting == "source-free" else self.source

    @property
    def training_targets(self) -> list[str]:
        """The targets that are served, unlabelled, in training: none to a generalization method."""
        return [] if self.setting == "generalization" else self.target

    @property
    def labelled(self) -> list[str]:
        """The domains whose labels train: the sources, or the targets of an oracle run."""
        return self.target if self.oracle else self.sources

    def setup(self, stage: str | None = None) -> None:
        """Loads the domains that ``stage`` needs, and checks them.

        Raises:
            UserError: for an oracle run of a source-free method, or what :meth:`check_label_sets` finds.
        """
        if self.oracle and not self.sources:
            raise UserError("data.oracle trains on the target's labels, and a source-free method learns from none")
        if self.oracle and self.has_unknown:
            raise UserError("data.oracle trains on the target's labels, of which data.label_sets leaves some unknown")
        if stage in (None, "fit"):
            if self.sources:
                self.check_label_sets()
            targets = [self.domain(name, "train").unlabelled() for name in self.training_targets]
            held_out: list[Domain] = []
            if share := self._held_out():
                if self.oracle:
                    raise UserError("data.oracle trains on all of the target, of which the method holds samples out")
                targets, held_out = map(list, zip(*(hold_out(target, share) for target in targets), strict=True))
            self.train_domains = [*(self.domain(name, "train") for name in self.labelled), *targets, *held_out]

    def check_label_sets(self) -> None:
        """Compares the classes of the data with what ``label_sets`` says.

        Raises:
            UserError: naming a class that one side lacks although ``label_sets`` says it has it.
        """
        present = {name: set(np.unique(self._labels(name)).tolist()) for name in (*self.source, *self.target)}
        found = {name: {self.class_names[index] for index in indices} for name, indices in present.items()}
        sources = set().union(*(found[name] for name in self.source))
        sets, named = self.class_sets, self.label_sets is not None
        expected = set(sets.source) if named else sources
        self._refuse_lacking(sorted(expected - sources), ", ".join(self.source), self.target)
        for name in self.target:
            self._refuse_lacking(sorted((set(sets.target) if named else sources) - found[name]), name, self.source)
            if not named:
                self._refuse_lacking(sorted(found[name] - sources), ", ".join(self.source), [name])

    def _refuse_lacking(self, classes: list[str], where: str, others: list[str]) -> None:
        if not classes:
            return
        if self.label_sets is None:
            raise UserError(
                f'class "{classes[0]}" is in {", ".join(others)} but not in {where}, although data.label_sets is '
                "closed: say there which classes are common, source_private and target_private"
            )
        raise UserError(f'{where} has no sample of class "{classes[0]}", which data.label_sets says it has')

    def _labels(self, name: str) -> Any:
        seen = name in self.source or name in self.training_targets
        labels = self.load(name, "train" if seen else "test").labels
        return np.asarray([] if labels is None or len(labels) == 0 or np.ndim(labels[0]) else labels, dtype=np.int64)

    def _held_out(self) -> float:
        return float(getattr(self.trainer.lightning_module, "held_out", 0.0)) if self.trainer is not None else 0.0

    def _balanced(self) -> tuple[int, int] | None:
        return getattr(self.trainer.lightning_module, "balanced", None) if self.trainer is not None else None

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _steps_done(self) -> int:
        return int(getattr(self.trainer.lightning_module, "steps_done", 0)) if self.trainer is not None else 0

    def views(self) -> Mapping[str, Callable[[Any], Any]]:
        """The extra views that the method in training asks for."""
        names = getattr(self.trainer.lightning_module, "views", ()) if self.trainer is not None else ()
        return {name: self.view(name) for name in names}

    def train_dataloader(self) -> DataLoader[Any]:
        """Joint batches, ``steps_per_epoch`` of them each time it is iterated, from the step reached on.

        Raises:
            UserError: if a batch is larger than a domain, or the ranks cannot share it equally.
        """
        rank, world_size = self._rank()
        targets = len(self.training_targets)
        num_held_out = targets if self._held_out() else 0
        counts = [self.batch_size] * len(self.labelled) + [self.target_batch_size] * (targets + num_held_out)
        for domain, count in zip(self.train_domains, counts, strict=True):
            if count > len(domain):
                raise UserError(f"{domain.name} has {len(domain)} training samples, fewer than a batch of {count}")
            if count % world_size:
                raise UserError(f"{world_size} ranks cannot share a batch of {count} equally")
        balanced = self._balanced()
        if balanced is not None and balanced[0] * balanced[1] % world_size:
            raise UserError(f"{world_size} ranks cannot share {balanced[0]} classes of {balanced[1]} rows equally")
        sampler = JointBatchSampler(
            [Stream(d.name, len(d), count) for d, count in zip(self.train_domains, counts, strict=True)],
            seed=self.seed,
            steps_per_epoch=self.steps_per_epoch,
            steps_done=self._steps_done,
            rank=rank,
            world_size=world_size,
            extra_draws=None if balanced is None else self.balanced_rows,
            places=(len(self.labelled), len(self.labelled) + targets),
        )
        options: dict[str, Any] = {"augment": self.augment, "views": self.views(), "seed": self.seed}
        data = JointDataset(self.train_domains, **options, num_held_out=num_held_out)
        collate = SharedMemoryCollator(self.num_workers)
        return self._loader(data, sampler, collate, persistent_workers=self.num_workers > 0)

    def balanced_rows(self) -> ExtraDraws:
        """What draws a batch's class-balanced rows, by the pseudo-labels that the method has now."""
        method: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        first, (classes, per_class) = len(self.labelled), method.balanced
        targets = [np.asarray(labels) for labels in method.target_labels()]
        sizes = [len(domain) for domain in self.train_domains[first : first + len(self.training_targets)]]
        if [len(labels) for labels in targets] != sizes:
            raise ValueError(f"the targets have {sizes} training samples, not {[len(labels) for labels in targets]}")
        pools = Pools.of([np.asarray(domain.labels) for domain in self.train_domains[:first]], targets)
        return lambda step: draw_balanced(pools, self.seed, step, classes, per_class)

    def evaluations(self, stage: Literal["validate", "test"]) -> list[Evaluation]:
        """What the evaluation loaders of ``stage`` hold, in their order."""
        if stage == "test":
            return [Evaluation("source_test", self.domain(name, "test")) for name in self.sources] + [
                Evaluation("target_test", self.domain(name, "test")) for name in self.target
            ]
        shown = self.sources if self.training_targets else []  # to the density ratio of source and target
        train = [self.domain(name, "train").unlabelled() for name in shown]
        share = max(1, -(-sum(map(len, train)) // self.evidence_samples))
        scored = self.sources if self.evaluate_train else []
        return [
            *(Evaluation("source_train_labelled", self.domain(name, "train")) for name in scored),
            *(Evaluation("source_train", domain.subset(range(0, len(domain), share))) for domain in train),
            *(Evaluation("source_val", self.domain(name, "val")) for name in self.sources),
            *(Evaluation("target_val", self.domain(name, "val")) for name in self.target),
            *(Evaluation("target_test", self.domain(name, "test")) for name in self.target),
        ]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of ``evaluations("validate")``."""
        return [self.evaluation_loader(evaluation.domain) for evaluation in self.evaluations("validate")]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of ``evaluations("test")``."""
        return [self.evaluation_loader(evaluation.domain) for evaluation in self.evaluations("test")]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """The targets' test splits, without labels."""
        return [self.evaluation_loader(self.domain(name, "test").unlabelled()) for name in self.target]

    def evaluation_loader(self, domain: Domain, *, shard: bool = True) -> DataLoader[Any]:
        """Every sample of ``domain`` once, in order, without augmentation.

        For a transductive method, whose predictions depend on what else is in a batch, they come in a random order,
        always the same one: in a folder the domain's own order is that of the classes.

        Args:
            domain: what to serve.
            shard: each rank serves its share; otherwise each serves all of it.
        """
        rank, world_size = self._rank() if shard else (0, 1)
        if len(domain) < world_size:
            raise UserError(f"{world_size} ranks cannot share the {len(domain)} samples of {domain.name} to evaluate")
        method = self.trainer.lightning_module if self.trainer is not None else None
        mixed = bool(getattr(method, "transductive_reason", ""))
        sampler = ShardSampler(len(domain), self.eval_batch_size, mixed=mixed, rank=rank, world_size=world_size)
        return self._loader(JointDataset([domain]), sampler, collate)

    def _loader(self, data: JointDataset, sampler: Any, collate: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies the batch without waiting for the copy."""
        return batch.to(device, non_blocking=True)
