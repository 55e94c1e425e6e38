"""Whole trajectories of test-time methods: the toy network of the vectors, and images in batches as they are stored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.nn.network import Network
from dafw.testing.toys import ToyData, toy_trainer

Arrays = dict[str, NDArray[Any]]
BATCH_NORMS = {"bn1": "norm", "l4bn": "layer4.1"}


class Backbone(nn.Module):
    """conv3x3 - batch norm - relu - layer4[conv3x3 - batch norm] - relu - mean over the positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.layer4 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, width) of images (N, 3, H, W)."""
        hidden: Tensor = self.layer4(self.norm(self.conv(x)).relu()).relu().mean((2, 3))
        return hidden


class GoldenNetwork(Network):
    """The network of the vectors, which sees images as they are; it counts as trained.

    Args:
        arrays: its weights, by ``init_...``, and running statistics, by ``bn1_mean`` and so on, where there are some.
    """

    starts_trained = True

    def __init__(self, arrays: Arrays) -> None:
        width, classes = len(arrays["init_conv1_b"]), len(arrays["init_fc_b"])
        super().__init__(f"{__name__}.Backbone", backbone_args={"width": width}, mean=[0.0], std=[1.0])
        self.set_classes(classes)
        layers = {"conv1": "backbone.conv", "l4conv": "backbone.layer4.0", "fc": "head"}
        layers |= {name: f"backbone.{place}" for name, place in BATCH_NORMS.items()}
        found = {f"{place}.{long}": f"init_{name}_{short}" for name, place in layers.items() for short, long in PARTS}
        found |= {
            f"backbone.{BATCH_NORMS[name]}.running_{s}": f"{name}_{s}" for name in BATCH_NORMS for s in STATISTICS
        }
        state = {place: torch.tensor(arrays[name]) for place, name in found.items() if name in arrays}
        self.double().load_state_dict({**self.state_dict(), **state})


class GoldenHead(Network):
    """Features that come in directly, and the label head of the vectors; it counts as trained.

    Args:
        weight: (K, d) of the head.
        bias: (K,).
    """

    starts_trained = True

    def __init__(self, weight: Any, bias: Any) -> None:
        super().__init__("networks.Identity", backbone_args={"width": weight.shape[1]})
        self.set_classes(len(bias))
        state = {"weight": torch.as_tensor(weight), "bias": torch.as_tensor(bias)}
        self.double().label_head().load_state_dict(state)


PARTS = (("w", "weight"), ("b", "bias"))
STATISTICS = ("mean", "var")


class Stored(ToyData):
    """A target whose test samples are given images, in their order."""

    def __init__(self, images: Tensor, batch_size: int, classes: int) -> None:
        self.class_names = tuple(map(str, range(classes)))  # type: ignore[misc]
        super().__init__("a", "b", batch_size=batch_size, stream_order="stored")
        self.images = images

    def load(self, name: str, split: Split) -> Domain:
        """The images as every split of every domain."""
        labels = np.arange(len(self.images)) % 3
        return replace(super().load(name, split), inputs=list(self.images), labels=labels)


class After(pl.Callback):
    """Calls a function with the method and the number of the batch, from 1, when all of the batch is done."""

    def __init__(self, look: Callable[[Any, int], None]) -> None:
        self.look = look

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Calls it for the batch before."""
        if batch_idx:
            self.look(pl_module, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Calls it for the last batch."""
        self.look(pl_module, pl_module.steps_done)


def pass_stream(method: Any, arrays: Arrays, folder: Path, look: Callable[[Any, int], None]) -> list[Tensor]:
    """Trains a method on the batches ``x1``, ``x2``, ... of the arrays; looks at it after each.

    Returns:
        What each batch was served.
    """
    batches = [torch.tensor(arrays[f"x{k}"]) for k in range(1, 1000) if f"x{k}" in arrays]
    size = len(batches[0])
    trainer = toy_trainer(folder, epochs=1, precision="64-true", callbacks=[After(look)])
    trainer.fit(method, datamodule=Stored(torch.cat(batches), size, method.num_classes))
    return list(method.served.logits.split(size))


def mirrored(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """The view of the vectors: 0.9 of the mirrored image, and 0.05."""
    return 0.9 * x.flip(3) + 0.05


def norm_state(network: Any) -> dict[str, Tensor]:
    """Scale, shift and running statistics of both normalisations, by the vectors' names for them."""
    found = {}
    for name, place in BATCH_NORMS.items():
        layer = network.backbone.get_submodule(place)
        found |= {f"{name}_w": layer.weight, f"{name}_b": layer.bias}
        found |= {f"{name}_mean": layer.running_mean, f"{name}_var": layer.running_var}
    return {name: value.detach() for name, value in found.items()}
