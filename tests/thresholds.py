"""What each rank finds of a rejection's threshold: sources whose validation splits no two ranks share evenly."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.evaluation.rejection import Entropy
from dafw.methods import SourceOnly
from dafw.testing.toys import ToyData, toy_network, toy_trainer
from datamodules.label_sets import LabelSets

KEEP = 0.7


class Uneven(ToyData):
    """Of the two known classes 15 validation samples of a, 7 of c."""

    def load(self, name: str, split: Split) -> Domain:
        """Less of c's validation split."""
        domain = super().load(name, split)
        return domain.subset(range(10)) if (name, split) == ("c", "val") else domain


def make_data() -> Uneven:
    """One sample a batch in evaluation, so that no logit depends on which samples a rank has."""
    sizes = {"count": 42, "batch_size": 4, "steps_per_epoch": 4, "eval_batch_size": 1}
    return Uneven(["a", "c"], "b", label_sets=LabelSets(1, 1, 1), **sizes)


def make_method() -> SourceOnly:
    """Always with the same initial weights."""
    torch.manual_seed(5)
    return SourceOnly(toy_network(), num_classes=2, lr=0.05, rejection=Entropy(keep=KEEP))


def trainer(folder: str, world: int, **options: Any) -> pl.Trainer:
    """In float64, on so many ranks."""
    if world > 1:
        options["strategy"] = DDPStrategy(process_group_backend="gloo")
    return toy_trainer(Path(folder), precision="64-true", devices=world, **options)


def everything(rank: int, world: int) -> dict[str, Any]:
    """Thresholds: of a validation, of a refit to its weights, and of a refit to those that a training leaves."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        method = make_method()
        trainer(folder, world).validate(method, datamodule=make_data(), verbose=False)
        assert method.rejection is not None
        found["validation"] = method.rejection.fitted.clone()
        method.rejection.fitted.fill_(torch.nan)
        method.evaluator.open_set.fit_to_final_weights()
        found["refit"] = method.rejection.fitted.clone()
        method = make_method()
        trainer(folder, world, limit_val_batches=0).fit(method, datamodule=make_data())
    found["weights"] = method.state_dict()
    return found
