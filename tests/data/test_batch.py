"""A batch moves as a whole, whatever it holds."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dafw.data import Batch, Sample, collate
from dafw.data.fields import Fields


class Box(NamedTuple):
    """One labelled box."""

    corners: Tensor
    label: int


def sample(index: int, x: Any, y: Any, maps: dict[str, Tensor] | None = None, **views: Any) -> Sample:
    return Sample(x, y, 0 if y is not None else 1, index, views, maps or {})


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


def unpadded(images: Tensor, sizes: Tensor | None) -> list[Tensor]:
    """The images without their padding, which must be zero."""
    assert sizes is not None
    found = []
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        found.append(image[..., :height, :width])
        assert image.count_nonzero() == found[-1].count_nonzero()
    return found


def test_images_of_several_sizes_are_padded() -> None:
    batch = detection()
    assert (batch.x.shape, batch.sizes.tolist()) == ((3, 3, 6, 5), [[4, 5], [5, 5], [6, 5]])
    for index, image in enumerate(unpadded(batch.x, batch.sizes)):
        assert image.equal(torch.full((3, 4 + index, 5), float(index)))
    assert (len(batch), batch.num_source, len(batch.y)) == (3, 2, 2)
    assert batch.y[0]["name"] == "first"


def test_masks_of_several_sizes_are_padded_with_what_nobody_learns_from() -> None:
    masks = [torch.full((2 + index, 3), index, dtype=torch.uint8) for index in range(2)]
    images = [torch.ones(1, *mask.shape) for mask in masks]
    batch = collate([sample(i, image, mask) for i, (image, mask) in enumerate(zip(images, masks, strict=True))])
    assert batch.y.tolist() == [[[0] * 3, [0] * 3, [255] * 3], [[1] * 3] * 3]
    assert (batch.y.dtype, batch.sizes.tolist()) == (torch.uint8, [[2, 3], [3, 3]])


def test_tokens_are_stacked_key_by_key() -> None:
    rows = [{"ids": torch.tensor([i, 7]), "mask": torch.tensor([True, i == 1])} for i in range(3)]
    batch = collate([sample(i, row, i) for i, row in enumerate(rows)])
    assert {name: value.tolist() for name, value in batch.x.items()} == {
        "ids": [[0, 7], [1, 7], [2, 7]],
        "mask": [[True, False], [True, True], [True, False]],
    }
    assert (batch.sizes, len(batch)) == (None, 3)
    assert {value.device.type for value in batch.to("meta").x.values()} == {"meta"}


def test_tokens_of_several_lengths_are_padded_where_a_mask_tells() -> None:
    rows = [
        {"ids": torch.full((1 + i,), 5), "attention_mask": torch.ones(1 + i), "text": "ab"[: i + 1]} for i in (0, 1)
    ]
    batch = collate([sample(i, row, None, other=row) for i, row in enumerate(rows)])
    for found in (batch.x, batch.views["other"]):
        assert found["ids"].tolist() == [[5, 0], [5, 5]]
        assert found["attention_mask"].tolist() == [[1, 0], [1, 1]]
        assert found["text"] == ["a", "ab"]
    moved = batch.to("meta")
    assert isinstance(moved.x, Fields)
    assert (moved.x["ids"].device.type, moved.x["text"]) == ("meta", ["a", "ab"])


def test_rows_of_inputs_of_several_parts() -> None:
    rows = [{"ids": torch.tensor([i, 7]), "text": str(i)} for i in range(4)]
    x = collate([sample(i, row, i) for i, row in enumerate(rows)]).x
    for chosen, expected in (
        (slice(2), [0, 1]),
        (slice(3, None), [3]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([False, True, False, True]), [1, 3]),
    ):
        part = x[chosen]
        assert isinstance(part, Fields)
        assert part["ids"][:, 0].tolist() == expected
        assert part["text"] == list(map(str, expected))


def test_labels_of_several_parts_that_are_no_tensors_stay_a_list() -> None:
    labels: list[Any] = [{"score": 1.5, "words": ["a"]}, {"score": 2.0, "words": []}]
    assert collate([sample(i, torch.ones(2), y) for i, y in enumerate(labels)]).y == labels
    ragged = [{"part": torch.ones(i), "attention_mask": torch.ones(i)} for i in (1, 2)]
    assert isinstance(collate([sample(i, torch.ones(2), y) for i, y in enumerate(ragged)]).y, list)


def test_what_is_neither_an_image_nor_a_number_stays_a_list() -> None:
    same = {"boxes": torch.ones(2, 4), "labels": torch.ones(2)}
    batch = collate([sample(i, ["some", "words"], same) for i in range(2)])
    assert batch.x == [["some", "words"]] * 2
    assert isinstance(batch.y, list)
    longer = collate([sample(i, {"ids": torch.zeros(3 + i)}, i) for i in range(2)])
    assert [len(row["ids"]) for row in longer.x] == [3, 4]


def test_a_batch_without_its_labels() -> None:
    batch = collate([sample(i, torch.full((2,), i), i) for i in range(3)])
    bare = batch.unlabelled()
    assert (bare.num_source, len(bare.y), len(bare)) == (0, 0, 3)
    assert bare.x is batch.x
    assert batch.y.tolist() == [0, 1, 2]


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
    assert moved.sizes is not None
    tensors = [
        moved.x,
        moved.domain,
        moved.index,
        moved.y[0]["boxes"],
        *moved.y[0]["labels"],
        moved.y[1]["one"].corners,
        moved.sizes,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(moved.y[1]["one"], Box)
    assert (moved.y[0]["name"], moved.y[1]["one"].label, moved.num_source) == ("first", 3, 2)


def test_pinning_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = detection()
    assert isinstance(batch.pin_memory(), Batch)
    assert len(pinned) == 1 + 1 + 2 + 1 + 2 + 1 + 1  # images, their sizes, keys, then boxes and labels of both


def test_views_are_stacked_by_name() -> None:
    samples = [sample(i, torch.ones(2), i, weak=torch.zeros(3), strong=torch.ones(4)) for i in range(4)]
    batch = collate(samples)
    assert {name: tuple(view.shape) for name, view in batch.views.items()} == {"weak": (4, 3), "strong": (4, 4)}
    assert batch.y.tolist() == [0, 1, 2, 3]
    assert {view.device.type for view in batch.to("meta").views.values()} == {"meta"}


def test_maps_and_sizes_of_views() -> None:
    affine = [torch.arange(6.0).reshape(2, 3) + i for i in range(2)]
    views = [torch.ones(3, 2 + i, 4) for i in range(2)]
    image = torch.ones(3, 5, 5)
    batch = collate([sample(i, image, i, {"weak": affine[i]}, weak=view) for i, view in enumerate(views)])
    assert batch.maps["weak"].equal(torch.stack(affine))
    assert (batch.sizes, batch.view_sizes["weak"].tolist()) == (None, [[2, 4], [3, 4]])
    assert [view.sum() for view in unpadded(batch.views["weak"], batch.view_sizes["weak"])] == [24, 36]
    moved = batch.to("meta")
    assert {moved.maps["weak"].device.type, moved.view_sizes["weak"].device.type} == {"meta"}


def test_targets_alone() -> None:
    batch = collate([sample(i, torch.ones(2), None) for i in range(3)])
    assert (batch.num_source, len(batch.y), tuple(batch.x.shape)) == (0, 0, (3, 2))


def test_no_samples() -> None:
    assert len(collate([])) == 0
