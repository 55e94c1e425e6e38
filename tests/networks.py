"""Small networks, and images and batches for them."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dafw.data.batch import Batch
from dafw.nn.network import Network


def images(count: int = 4, side: int = 28, channels: int = 3) -> Tensor:
    """Random images, (count, channels, side, side) in uint8."""
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


def network(num_classes: int = 10, **options: Any) -> Network:
    """A network with its head, always of the same weights."""
    torch.manual_seed(0)
    net = Network(**options)
    net.set_classes(num_classes)
    return net


class TanhLinear(nn.Module):
    """Rows (N, d_in) to features tanh(W x + b), (N, d_out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.num_features = outputs
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.linear(x).tanh()
        return features


class Identity(nn.Module):
    """Rows (N, d) that are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The rows themselves."""
        return x


class OneBatch(pl.LightningDataModule):
    """The same training batch of labelled rows at every step, and nothing else.

    Args:
        inputs: (n, ...) of each source.
        labels: (n,) of the same rows.
    """

    def __init__(self, inputs: list[Tensor], labels: list[Tensor]) -> None:
        super().__init__()
        domain = torch.cat([torch.full_like(y, position) for position, y in enumerate(labels)])
        self.batch = Batch(torch.cat(inputs), torch.cat(labels), domain, torch.arange(len(domain)), len(domain))
        self.labelled = [str(position) for position in range(len(inputs))]

    def train_dataloader(self) -> Any:
        """Endless repetition is the trainer's: one batch an epoch."""
        return DataLoader([self.batch], batch_size=None)  # type: ignore[arg-type]


def measure(trainer: pl.Trainer, method: Any, data: pl.LightningDataModule) -> dict[str, float]:
    """What a test says of a method, by the names of its metrics."""
    trainer.test(method, datamodule=data, verbose=False)
    return {name.partition("/dataloader")[0]: float(value) for name, value in trainer.callback_metrics.items()}
