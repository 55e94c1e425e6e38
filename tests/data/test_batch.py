"""A batch moves as a whole, whatever it holds."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dafw.data import Batch, Sample, collate


class Box(NamedTuple):
    """One labelled box."""

    corners: Tensor
    label: int


def sample(index: int, x: Any, y: Any, **views: Any) -> Sample:
    return Sample(x, y, 0 if y is not None else 1, index, views)


def detection() -> Batch:
    """Images of two sizes; boxes in dictionaries, lists and tuples."""
    images = [torch.full((3, 4 + index, 5), float(index)) for index in range(3)]
    targets: list[Any] = [
        {"boxes": torch.ones(2, 4), "labels": [torch.tensor(1), torch.tensor(2)], "name": "first"},
        {"boxes": torch.ones(0, 4), "labels": [], "one": Box(torch.zeros(4), 3)},
    ]
    found = [sample(i, image, y) for i, (image, y) in enumerate(zip(images, [*targets, None], strict=True))]
    return collate(found)


def test_held_out_samples_come_last() -> None:
    first, second = sample(0, torch.zeros(2), None), sample(1, torch.zeros(2), None)._replace(held_out=True)
    assert collate([first, second]).num_held_out == 1
    with pytest.raises(ValueError, match="held-out samples must come last"):
        collate([second, first])


def test_lists_where_sizes_differ() -> None:
    batch = detection()
    assert isinstance(batch.x, list)
    assert [x.shape[1] for x in batch.x] == [4, 5, 6]
    assert (len(batch), batch.num_source, len(batch.y)) == (3, 2, 2)
    assert batch.y[0]["name"] == "first"


def test_images_keep_their_layout() -> None:
    planes = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    pixels = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for images in (planes, pixels):
        batch = collate([sample(i, image, i) for i, image in enumerate(images)])
        assert batch.x.equal(images)
        assert batch.x.stride() == images.stride()


def test_lists_where_dtypes_differ() -> None:
    batch = collate([sample(0, torch.ones(2), 0), sample(1, torch.ones(2), 1), sample(2, torch.ones(2).int(), 2)])
    assert [x.dtype for x in batch.x] == [torch.float32, torch.float32, torch.int32]
    assert all(x.eq(1).all() for x in batch.x)


def test_to_reaches_every_tensor() -> None:
    moved = detection().to("meta", non_blocking=True)
    tensors = [
        *moved.x,
        moved.domain,
        moved.index,
        moved.y[0]["boxes"],
        *moved.y[0]["labels"],
        moved.y[1]["one"].corners,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(moved.y[1]["one"], Box)
    assert (moved.y[0]["name"], moved.y[1]["one"].label, moved.num_source) == ("first", 3, 2)


def test_pinning_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = detection()
    assert isinstance(batch.pin_memory(), Batch)
    assert len(pinned) == 3 + 2 + 1 + 2 + 1 + 1  # images, keys, then boxes and labels of both


def test_views_are_stacked_by_name() -> None:
    samples = [sample(i, torch.ones(2), i, weak=torch.zeros(3), strong=torch.ones(4)) for i in range(4)]
    batch = collate(samples)
    assert {name: tuple(view.shape) for name, view in batch.views.items()} == {"weak": (4, 3), "strong": (4, 4)}
    assert batch.y.tolist() == [0, 1, 2, 3]
    assert {view.device.type for view in batch.to("meta").views.values()} == {"meta"}


def test_targets_alone() -> None:
    batch = collate([sample(i, torch.ones(2), None) for i in range(3)])
    assert (batch.num_source, len(batch.y), tuple(batch.x.shape)) == (0, 0, (3, 2))


def test_no_samples() -> None:
    assert len(collate([])) == 0
