"""Another problem than classification: a small segmentation method on generated masks, on the same base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from dafw.data import ArrayImages, Domain
from dafw.data.roles import Split
from dafw.methods import AdaptationMethod, Losses
from dafw.problems import MaskOutputs, NetworkBase, Predicted, Problem
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule


class Masks(Problem):
    """One class a pixel, in a few lines."""

    kind: ClassVar[str] = "segmentation"
    primary: ClassVar[str] = "iou"
    predictions_name: ClassVar[str] = "masks.npz"

    def terms(self, outputs: MaskOutputs, y: Tensor) -> dict[str, Tensor]:
        return {"supervised": F.cross_entropy(outputs.logits, y)}

    def metrics(self, num_classes: int, **_: Any) -> MetricCollection:
        return MetricCollection({"iou": MulticlassJaccardIndex(num_classes)})

    def predictions(self, outputs: MaskOutputs, unknown: Tensor | None = None) -> dict[str, Any]:
        return {"prediction": outputs.logits.argmax(1)}

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        np.savez(path, **{one.domain: np.stack([*one.columns["prediction"]]) for one in found})


class DenseNetwork(NetworkBase):
    """A convolution, a batch norm, a pixelwise head."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()), 8)

    def make_head(self, num_classes: int) -> nn.Module:
        return nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Any, sizes: Tensor | None = None) -> MaskOutputs:
        features = self.encode(x, sizes)
        return MaskOutputs(features, self.label_head()(features), sizes=sizes)


class MatchChannels(AdaptationMethod):
    """The mean of each channel is drawn together."""

    kinds: ClassVar[tuple[str, ...]] = ("segmentation",)
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}

    def __init__(self, network: NetworkBase, *, weight: float = 0.1, **base: Any) -> None:
        super().__init__(network, **base)
        self.weight = weight

    def adapt(self, source: MaskOutputs, target: MaskOutputs, joint: MaskOutputs) -> Losses:
        gap = source.features.mean((0, 2, 3)) - target.features.mean((0, 2, 3))
        return {"gap": self.weight * gap.square().mean()}


class Squares(DomainDataModule):
    """Bright squares on a dark ground; the target is dimmer."""

    domain_names = ("bright", "dim")
    class_names = ("ground", "square")

    def load(self, name: str, split: Split) -> Domain:
        rng = np.random.default_rng([len(name), len(split)])
        masks = np.zeros((24, 12, 12), np.int64)
        for mask in masks:
            top, left = rng.integers(0, 6, 2)
            mask[top : top + 6, left : left + 6] = 1
        level = 160 if name == "bright" else 110
        images = (40 + level * masks[..., None] + rng.integers(0, 40, (24, 12, 12, 3))).astype(np.uint8)
        return Domain(name, ArrayImages(images), torch.from_numpy(masks))


def test_a_segmentation_method_trains_and_is_evaluated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = MatchChannels(DenseNetwork(), num_classes=2, problem=Masks(), lr=0.2)
    data = Squares("bright", "dim", batch_size=6, steps_per_epoch=15)
    trainer = toy_trainer(tmp_path, epochs=2)
    trainer.fit(method, datamodule=data)
    assert set(method.last_terms) == {"supervised", "gap", "loss"}
    assert method.history[-1]["validators"]["source_iou"] > 0.9
    assert set(method.history[-1]["validators"]) == {"source_iou", "source_loss"}
    trainer.test(method, datamodule=data, verbose=False)
    values = {name.partition("/dataloader")[0]: value for name, value in trainer.callback_metrics.items()}
    assert values["test/bright/iou"] > 0.9
    assert values["test/dim/iou"] > 0.5
    predicted: Any = trainer.predict(method, datamodule=data)
    assert predicted[0]["prediction"].shape == (24, 12, 12)


def test_the_adaptation_reaches_the_network(tmp_path: Path) -> None:
    gaps = {}
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        method = MatchChannels(DenseNetwork(), num_classes=2, problem=Masks(), lr=0.05, weight=weight, norm="frozen")
        data = Squares("bright", "dim", batch_size=6, steps_per_epoch=15)
        toy_trainer(tmp_path, epochs=2).fit(method, datamodule=data)
        method.eval()
        means = []
        for name in ("bright", "dim"):
            images = torch.stack([data.load(name, "test").inputs[i] for i in range(24)])
            with torch.no_grad():
                means.append(method(images).features.mean((0, 2, 3)))
        gaps[weight] = float((means[0] - means[1]).norm())
    assert gaps[30.0] < 0.7 * gaps[0.0]
