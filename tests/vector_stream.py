"""Reference vectors of test-time methods as a stream: a small network with given weights, and given batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dafw.data import Domain
from dafw.data.batch import Batch
from dafw.data.roles import Split
from dafw.methods import TestTimeMethod
from dafw.nn.network import Network
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule

Vectors = Mapping[str, NDArray[Any]]


class Shallow(nn.Module):
    """Convolution, batch norm, ReLU, mean over the image: images (N, 3, H, W) -> features (N, 4)."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images."""
        y: Tensor = self.bn1(self.conv1(x)).relu()
        return y.mean((2, 3))


class Deep(Shallow):
    """:class:`Shallow` with another convolution, batch norm and ReLU named ``layer4`` before the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        """Features of images."""
        y: Tensor = self.layer4(self.bn1(self.conv1(x)).relu()).relu()
        return y.mean((2, 3))


class Trained(Network):
    """A network that needs no checkpoint."""

    @property
    def starts_trained(self) -> bool:
        """It is given its weights."""
        return True


class Given(DomainDataModule):
    """A target ``b`` whose test samples are given, all batches of one size."""

    domain_names = ("a", "b")

    def __init__(self, batches: Sequence[Tensor], classes: int) -> None:
        self.class_names = tuple(f"c{number}" for number in range(classes))
        super().__init__("a", "b", target_batch_size=len(batches[0]), stream_order="stored")
        self.rows = torch.cat(list(batches))

    def load(self, name: str, split: Split) -> Domain:
        """The samples, whatever the split."""
        return Domain(name, list(self.rows), np.zeros(len(self.rows), dtype=np.int64))


class Steps(pl.Callback):
    """Notes the learnt parameters after each step, and which rows counted in it."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.used: list[Tensor] = []
        self.buffers: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, index: int) -> None:
        """It comes before the method's, which writes proposed buffers."""
        state = pl_module.network.state_dict()
        self.after.append({name: value.clone() for name, value in state.items()})
        self.used.append(pl_module.rows_used)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, index: int) -> None:
        """The buffers as the step finds them."""
        self.buffers.append({name: value.clone() for name, value in pl_module.named_buffers(recurse=False)})


def network(backbone: type[nn.Module], weights: Mapping[str, NDArray[Any]], precision: str) -> Trained:
    """A network with given weights.

    Args:
        backbone: its class.
        weights: by their names in the network.
        precision: of the trainer; the network is in float64 for ``64-true``.
    """
    made = Trained(f"{backbone.__module__}.{backbone.__name__}", mean=[0.0], std=[1.0])
    made.set_classes(len(weights["head.bias"]))
    made.to(torch.float64 if precision == "64-true" else torch.float32)
    for name, value in weights.items():
        made.state_dict()[name].copy_(torch.as_tensor(value))
    return made


def follow(
    method: TestTimeMethod,
    batches: Sequence[NDArray[Any]],
    folder: Path,
    precision: str = "64-true",
    callbacks: Sequence[pl.Callback] = (),
) -> tuple[list[Tensor], Steps]:
    """Passes once over the batches.

    Returns:
        What each batch was served, and what happened in each step.
    """
    data, steps = Given([torch.as_tensor(batch) for batch in batches], method.num_classes), Steps()
    toy_trainer(folder, epochs=1, callbacks=[steps, *callbacks], precision=precision).fit(method, datamodule=data)
    return list(method.served.logits.split(len(batches[0]))), steps
