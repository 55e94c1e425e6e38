"""Rare-class sampling: a function of the sources' labels, the seed and the position."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dafw.data import Domain, JointBatchSampler
from dafw.data.rare_classes import class_pixels, rare_class_shares, rare_class_stream
from dafw.data.setting import DataRequest, RareClasses
from dafw.errors import UserError
from dafw.testing.toys import ToyData

MASKS = [
    np.array(mask, np.uint8) for mask in ([[0, 0], [0, 1]], [[0, 0], [0, 255]], [[1, 1], [3, 0]], [[0, 0], [1, 3]])
]


def domain() -> Domain:
    return Domain("a", [torch.zeros(3, 2, 2)] * 4, MASKS)


def test_pixels_are_counted_without_those_that_have_no_label() -> None:
    assert class_pixels(MASKS, 4).tolist() == [[3, 1, 0, 0], [3, 0, 0, 0], [1, 2, 0, 1], [2, 1, 0, 1]]
    shares = rare_class_shares(class_pixels(MASKS, 4).sum(0), 0.1)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] < shares[1] < shares[3] < shares[2]


def test_images_are_drawn_for_a_class() -> None:
    stream = rare_class_stream(domain(), 2, 4, RareClasses(0.2, 2))
    assert stream.rows is not None
    assert stream.shares is not None
    assert [rows.tolist() for rows in stream.rows] == [[0, 1, 3], [2], [2, 3]]  # no image has two pixels of class 3
    assert stream.shares.sum() == pytest.approx(1)
    drawn = np.bincount([stream.draw(0, position)[0] for position in range(4000)], minlength=4) / 4000
    common, middle, rare = stream.shares
    np.testing.assert_allclose(drawn, [common / 3, common / 3, middle + rare / 2, common / 3 + rare / 2], atol=0.03)
    assert [stream.draw(5, position) for position in range(9)] == [stream.draw(5, position) for position in range(9)]
    assert len({stream.draw(0, position)[1] for position in range(9)}) == 9  # each is augmented anew


def test_ranks_share_the_draws_and_a_resumed_run_goes_on_with_them() -> None:
    stream = rare_class_stream(domain(), 4, 4, RareClasses(0.2, 1))
    whole = JointBatchSampler([stream], seed=3, steps_per_epoch=6)
    ranks = [JointBatchSampler([stream], seed=3, steps_per_epoch=6, rank=rank, world_size=2) for rank in (0, 1)]
    resumed = JointBatchSampler([stream], seed=3, steps_per_epoch=6, steps_done=lambda: 4)
    for step, batch in enumerate(whole):
        assert [each for pair in zip(*(one.batch(step) for one in ranks), strict=True) for each in pair] == batch
    assert list(resumed) == list(whole)[4:]


def test_without_a_label_there_is_nothing_to_draw() -> None:
    empty = Domain("a", [torch.zeros(3, 2, 2)], [np.full((2, 2), 255, np.uint8)])
    with pytest.raises(UserError, match="no pixel of a has a label"):
        rare_class_stream(empty, 1, 4, RareClasses(0.01, 3000))


class Asks:
    """A module that asks for rare classes."""

    data_request = DataRequest(rare_classes=RareClasses(0.01, 3000))


class Counted(ToyData):
    """Toy masks with a key, whose reads are counted."""

    reads = 0

    @property
    def request(self) -> DataRequest:
        return Asks.data_request

    def masks_key(self, domain: Domain) -> Any:
        return ["toys", domain.name]


def test_the_masks_of_the_sources_alone_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path))
    counted: list[int] = []

    def count(masks: Any, num_classes: int) -> Any:
        counted.append(len(masks))
        return class_pixels(masks, num_classes)

    monkeypatch.setattr("dafw.data.rare_classes.class_pixels", count)
    for _ in range(2):
        data = Counted("a", "b", kind="segmentation", batch_size=4, steps_per_epoch=3, count=21)
        data.setup("fit")
        sampler: Any = data.train_dataloader().batch_sampler
        assert [stream.shares is None for stream in sampler.streams] == [False, True]
        assert [stream.name for stream in sampler.streams] == ["a", "b"]
    assert counted == [21]
    assert list(tmp_path.glob("arrays/class-pixels-*.npz"))
