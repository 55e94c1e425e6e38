"""Two domains whose classes light different rows of an image, some of them in the target alone."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dafw.data import ArrayImages, Domain
from dafw.data.roles import Split
from dafw.methods import Method
from dafw.testing.toys import ToyData, toy_trainer
from datamodules.label_sets import LabelSets

SIDE, KNOWN = 6, 4


class PrivateClasses(ToyData):
    """Noisy images (3, 6, 6) of which class k lights row k, less in the target; the source has four of six classes."""

    class_names = ("zero", "one", "two", "three", "four", "five")

    def load(self, name: str, split: Split) -> Domain:
        """All six classes."""
        count = self.count if split == "train" else 2 * self.count
        rng = np.random.default_rng([sum(name.encode()), ("train", "val", "test").index(split)])
        labels = np.arange(count) % SIDE
        gain, offset = (1.0, 0.0) if name == "a" else (0.7, 0.1)
        lit = (np.arange(SIDE) == labels[:, None])[:, :, None, None]
        images = np.clip(gain * lit + offset + 0.3 * rng.random((count, SIDE, SIDE, 3)), 0, 1)
        return Domain(name, ArrayImages((255 * images).astype(np.uint8)), labels.astype(np.int64))


class TwoLayers(nn.Module):
    """Images (N, 3, 6, 6) to features (N, 32)."""

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(108, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.layers(x)
        return features


def make_data() -> PrivateClasses:
    """The task a -> b, whose target has two classes of its own."""
    sets = LabelSets(common=KNOWN, source_private=0, target_private=2)
    return PrivateClasses("a", "b", batch_size=24, steps_per_epoch=100, count=120, seed=0, label_sets=sets)


def train(method: Method, folder: Path) -> None:
    """Trains a method for 100 steps."""
    toy_trainer(folder, epochs=1, limit_val_batches=0).fit(method, datamodule=make_data())


def judge(method: Method) -> tuple[float, float]:
    """Share of the target's test images that are mistaken, of known classes and of private ones.

    A known one is mistaken if it gets another class or is rejected, a private one if it is not rejected.
    """
    domain = make_data().domain("b", "test")
    images, labels = torch.stack(list(domain.inputs)), torch.as_tensor(np.asarray(domain.labels))
    method.eval()
    with torch.no_grad():
        outputs = method(images)
        margins = method.unknown_scores(outputs)
    method.train()
    assert isinstance(margins, Tensor)
    wrong = torch.where(margins > 0, KNOWN, outputs.logits.argmax(1)) != labels
    private = labels == KNOWN
    assert 0 < int(private.sum()) < len(labels)
    return float(wrong[~private].float().mean()), float(wrong[private].float().mean())
