"""Statistics of the source: computed once, kept beside the source model's run, refused where nothing can give them."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dafw.data import Batch
from dafw.errors import UserError
from dafw.methods import Losses, SourceOnly, TestTimeMethod
from dafw.methods.source_statistics import UsesSource
from dafw.optim.schedules import Constant
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer


class TowardsMeans(UsesSource, TestTimeMethod):
    """Features come closer to the nearest mean of a class of the source."""

    means: Tensor

    def __init__(self, network: Any, *, samples: int | None = None, **base: Any) -> None:
        super().__init__(network, schedule=Constant(), **base)
        self.samples, self.computed = samples, 0
        self.register_buffer("means", torch.zeros(3, 8))

    def take_from_source(self) -> None:
        self.means.copy_(self.source_statistics("means", self.class_means, count=self.samples)["means"])

    def class_means(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        self.computed += 1
        assert not self.training
        pairs = [(self.start_outputs(batch).features.detach(), batch.y) for batch in batches]
        features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {"means": torch.stack([features[labels == label].mean(0) for label in range(3)])}

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        return {"means": torch.cdist(outputs.features, self.means).min(1).values.mean()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run of a source model."""
    _, trainer = case(SourceOnly).train(tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "run" / "checkpoints" / "step=1.ckpt")
    return tmp_path / "run"


def stream(run: Path, *, gone: bool = False, source: str = "a", **arguments: Any) -> TowardsMeans:
    """Passes a stream once; the source's files may be gone."""
    method = TowardsMeans(toy_network(), num_classes=3, checkpoint=str(run), **arguments)
    data = ToyData(source, "b", batch_size=7)
    data.forbidden = [("a", split) for split in ("train", "val", "test")] if gone else []
    toy_trainer(run, epochs=1).fit(method, data)
    return method


def files(run: Path) -> list[Path]:
    return sorted((run / "statistics").glob("*.safetensors"))


def test_they_are_computed_once_and_the_source_is_not_needed_again(run: Path) -> None:
    first = stream(run)
    assert first.computed == 1
    assert first.means.abs().sum() > 0
    assert len(files(run)) == 1
    assert files(run)[0].name.startswith("means-")
    again = stream(run, gone=True)
    assert again.computed == 0
    torch.testing.assert_close(again.means, first.means, rtol=0, atol=0)
    assert first.source_use == "statistics"


def test_other_weights_other_samples_and_other_settings_make_another_file(run: Path) -> None:
    all_samples = stream(run)
    few = stream(run, samples=20)
    assert len(files(run)) == 2
    assert not torch.equal(all_samples.means, few.means)
    stream(run, source="c")
    assert len(files(run)) == 3
    _, trainer = case(SourceOnly).train(run, epochs=2)
    trainer.save_checkpoint(run / "checkpoints" / "step=9.ckpt")
    stream(run)
    assert len(files(run)) == 4


def test_without_file_and_source_a_sentence_says_what_to_do(run: Path) -> None:
    with pytest.raises(UserError, match=r"TowardsMeans needs statistics \(means\) of the source .*dafw statistics"):
        stream(run, gone=True)


def test_a_damaged_file_is_made_anew(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = stream(run)
    files(run)[0].write_bytes(files(run)[0].read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        again = stream(run)
    assert "is damaged" in caplog.text
    assert again.computed == 1
    torch.testing.assert_close(again.means, first.means, rtol=0, atol=0)


def test_what_computes_them_may_not_change_the_network(run: Path) -> None:
    class Careless(TowardsMeans):
        """Leaves other weights behind."""

        def class_means(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
            with torch.no_grad():
                next(iter(self.network.parameters())).add_(1)
            return {"means": self.means}

    method = Careless(toy_network(), num_classes=3, checkpoint=str(run))
    with pytest.raises(ValueError, match="must leave the network as it is"):
        toy_trainer(run, epochs=1).fit(method, ToyData("a", "b", batch_size=7))
    assert files(run) == []


def test_the_order_of_the_samples_is_a_function_of_their_own_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        data = ToyData(["a", "c"], "b", seed=seed + 5)
        batches = list(data.shuffled_once(data.source_domains("train"), 30, 8, seed))
        assert [len(batch.y) for batch in batches] == [8, 8, 8, 6]
        orders.append([(int(d), int(i)) for batch in batches for d, i in zip(batch.domain, batch.index, strict=True)])
        assert len(set(orders[-1])) == 30
    assert orders[0] == orders[1] != orders[2]
    data = ToyData("a", "b")
    domain = replace(data.load("a", "train"), labels=None)
    data._loaded["a", "train"] = domain
    with pytest.raises(UserError, match="a has no labels"):
        data.source_domains("train")
