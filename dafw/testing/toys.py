"""Tiny domains, a tiny network and a quiet trainer: enough to train any method in a second."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, nn
from torchvision.transforms import v2

from dafw.data import ArrayImages, Domain
from dafw.data.padding import IGNORE
from dafw.data.references import References
from dafw.data.roles import Split
from dafw.errors import choose
from dafw.nn.attention import SqueezeExcite
from dafw.nn.network import Network
from dafw.testing.dense_toys import toy_boxes, toy_masks
from datamodules.base import DomainDataModule

SIZE, CLASSES = 6, 3


def toy_domain(name: str, count: int, split: Split = "train", classes: int = CLASSES) -> Domain:
    """Images (3, 6, 6) whose pattern shows the class; domains differ in contrast and offset."""
    rng = np.random.default_rng([sum(name.encode()), ("train", "val", "test").index(split)])
    labels = np.arange(count) % classes
    patterns = np.random.default_rng(7).random((classes, SIZE, SIZE, 3))
    gain, offset = (1.0, 0.0) if name == "a" else (0.6, 0.1 + 0.02 * (sum(name.encode()) % 10))
    noise = 0.3 * rng.random((count, SIZE, SIZE, 3))
    images = np.clip(gain * 0.7 * patterns[labels] + offset + noise, 0, 1)
    return Domain(name, ArrayImages((255 * images).astype(np.uint8)), labels.astype(np.int64))


class ToyData(DomainDataModule):
    """Generated domains a, b, c with three classes. Images with masks or boxes are flipped at random in training.

    Each image with a mask has a brighter one as its reference.

    Args:
        source: labelled domain or domains.
        target: domain or domains to serve.
        kind: of problem, ``classification``, ``segmentation`` or ``detection``.
        sizes: whether images with masks differ in size.
        count: training samples of each domain.
        garbage: replace the labels of every target's training and test split by nonsense.
        other_target: replace the images of every target's training and test split by others.
        base: see :class:`~datamodules.base.DomainDataModule`.
    """

    domain_names = ("a", "b", "c")
    class_names = ("zero", "one", "two")

    def __init__(  # type: ignore[no-untyped-def]
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        kind: str = "classification",
        sizes: bool = False,
        count: int = 40,
        garbage: bool = False,
        other_target: bool = False,
        **base,
    ) -> None:
        if kind != "classification":
            base.setdefault("augment", v2.RandomHorizontalFlip())
        super().__init__(source, target, **base)
        self.kind, self.sizes = choose("kind of toy data", kind, ("classification", "segmentation", "detection")), sizes
        self.count, self.garbage, self.other_target = count, garbage, other_target
        #: (domain, split) that cannot be loaded.
        self.forbidden: list[tuple[str, Split]] = []
        self._loaded: dict[tuple[str, str], Domain] = {}

    def load(self, name: str, split: Split) -> Domain:
        """Generates a split once.

        Raises:
            PermissionError: if it is forbidden.
        """
        if (name, split) in self.forbidden:
            raise PermissionError(f"{name}'s {split} split must not be loaded")
        if (name, split) not in self._loaded:
            count = self.count if split == "train" else self.count // 2 + 1
            if self.kind == "segmentation":
                domain = toy_masks(name, count, split, sizes=self.sizes)
                brighter = [image // 2 + 100 for image in domain.inputs]
                domain = replace(domain, references=References(brighter, np.arange(count)))
            elif self.kind == "detection":
                domain = toy_boxes(name, count, split)
            else:
                domain = toy_domain(name, count, split)
            trained = name in self.target and split in ("train", "test")
            if self.garbage and trained:
                domain = garbled(domain, CLASSES)
            if self.other_target and trained:
                domain = replace(domain, inputs=[255 - image for image in domain.inputs])
            self._loaded[name, split] = domain
        return self._loaded[name, split]

    def view(self, name: str) -> Callable[[Tensor], Tensor]:
        """The same random change of brightness, whatever the view's name; masks and boxes are flipped, too."""
        return jitter if self.kind == "classification" else v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.2)])


def garbled(domain: Domain, classes: int) -> Domain:
    """A domain with nonsense for labels: other classes or numbers, masks of others, boxes elsewhere and of others."""
    if domain.classes is not None:
        return replace(domain, labels=(domain.classes * 7 + 1) % classes)
    assert domain.labels is not None
    return replace(domain, labels=[_nonsense(label, classes) for label in domain.labels])


def _nonsense(label: Any, classes: int) -> Any:
    if isinstance(label, Tensor):  # a mask
        return torch.where(label == IGNORE, 0, (label + 1) % classes).to(label.dtype)
    if not isinstance(label, Mapping):
        return -label - 1
    return {**label, "boxes": label["boxes"] / 2, "labels": (label["labels"] + 1) % classes}


def jitter(x: Tensor) -> Tensor:
    """A random brightness."""
    return (x.float() * (0.8 + 0.4 * torch.rand(()))).clamp(0, 255).to(x.dtype)


class ToyNet(nn.Module):
    """A convolution, a batch norm, a linear layer: images (N, 3, 6, 6) -> features (N, 8)."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm: nn.Module = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images."""
        features: Tensor = self.linear(self.norm(self.conv(x)).relu().flatten(1))
        return features.tanh()


class ToySENet(ToyNet):
    """:class:`ToyNet` with squeeze-and-excitation behind its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(self.norm, SqueezeExcite(4, reduction=1))


def toy_network(backbone: str = "dafw.testing.toys.ToyNet", **options: Any) -> Network:
    """A network on :class:`ToyNet`, or on another backbone for its images."""
    return Network(backbone, **options)


def toy_trainer(
    folder: Path, *, epochs: int = 2, callbacks: list[pl.Callback] | None = None, **options: Any
) -> pl.Trainer:
    """A trainer on the CPU that prints nothing and looks at every third step."""
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "log_every_n_steps": 3}
    return pl.Trainer(
        max_epochs=epochs,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks or ()),
        default_root_dir=str(folder),
        callbacks=callbacks or [],
        **(defaults | options),
    )
