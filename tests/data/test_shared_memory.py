"""Batches from workers through slots of shared memory."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dafw.data import Batch, Domain, JointBatchSampler, JointDataset, Stream, collate, shared_memory
from dafw.data.images import as_item
from dafw.data.shared_memory import SharedMemoryCollator
from dafw.testing.toys import toy_domain

STEPS = 9


def double(x: Tensor) -> Tensor:
    return x.float() * 2


def side_by_side(name: str, length: int) -> Domain:
    """Images whose pixels have their channels side by side."""
    rng = np.random.default_rng(length)
    images = [as_item(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)) for _ in range(length)]
    return Domain(name, images, np.arange(length))


def loader(collate_fn: Any, workers: int = 2, make: Any = toy_domain, **options: Any) -> DataLoader[Any]:
    data = JointDataset([make("a", 5), make("b", 4).unlabelled()], views={"double": double})
    sampler = JointBatchSampler([Stream("a", 5, 4), Stream("b", 4, 4)], seed=1, steps_per_epoch=STEPS)
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate_fn, num_workers=workers, **options)


def assert_same(one: Batch, other: Batch) -> None:
    assert (one.num_source, one.num_held_out) == (other.num_source, other.num_held_out)
    assert list(one.views) == list(other.views)
    for name in ("x", "y", "domain", "index"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.equal(b)
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
    assert one.views["double"].equal(other.views["double"])


def where(batch: Batch) -> set[int]:
    tensors = [batch.x, batch.y, batch.domain, batch.index, *batch.views.values()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize("make", [toy_domain, side_by_side])
def test_the_batches_are_those_of_the_main_process(make: Any) -> None:
    expected = list(loader(collate, workers=0, make=make))
    used = set()
    for got, batch in zip(loader(SharedMemoryCollator(2), make=make), expected, strict=True):
        assert_same(got, batch)
        assert len(where(got)) == 1
        used |= where(got)
    assert len(used) < STEPS
    assert expected[0].x.is_contiguous(memory_format=torch.channels_last) == (make is side_by_side)


def test_a_batch_that_is_kept_never_changes() -> None:
    """More batches are kept than there are slots."""
    kept = list(loader(SharedMemoryCollator(2, slots=2)))
    for got, batch in zip(kept, loader(collate, workers=0), strict=True):
        assert_same(got, batch)
    places = [where(batch) for batch in kept]
    assert len(set().union(*places)) == sum(map(len, places))  # no two share memory


def test_a_slot_is_free_when_the_last_tensor_of_its_batch_is_gone() -> None:
    carried = SharedMemoryCollator(1)
    batches = iter(loader(carried, workers=1, persistent_workers=True))
    batch = next(batches)
    assert sum(1 for _ in batches) == STEPS - 1
    assert sum(carried.taken[0][:]) == 1
    row = batch.x[2]
    content = row.clone()
    del batch
    assert sum(carried.taken[0][:]) == 1
    assert row.equal(content)
    del row
    assert sum(carried.taken[0][:]) == 0


def test_a_process_forked_meanwhile_frees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    carried = SharedMemoryCollator(1)
    batch = next(iter(loader(carried, workers=1)))
    taken = sum(carried.taken[0][:])
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory.os, "getpid", lambda: -1)
        del batch
    assert sum(carried.taken[0][:]) == taken


@pytest.mark.parametrize("size", [100, 1500])
def test_what_finds_no_room_goes_the_usual_way(size: int) -> None:
    for got, batch in zip(loader(SharedMemoryCollator(2, size=size)), loader(collate, workers=0), strict=True):
        assert_same(got, batch)
        assert len(where(got)) > 1


def test_without_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(number: int, size: int) -> Any:
        if size > 1000:
            raise OSError("Cannot allocate memory")
        return mmap(number, size)

    mmap = shared_memory.mmap
    monkeypatch.setattr(shared_memory, "mmap", limited)
    for got, batch in zip(loader(SharedMemoryCollator(2)), loader(collate, workers=0), strict=True):
        assert_same(got, batch)


def test_workers_that_are_not_forked_get_no_slots() -> None:
    assert pickle.loads(pickle.dumps(SharedMemoryCollator(2))).slots == []
    spawned = loader(SharedMemoryCollator(1), workers=1, multiprocessing_context="spawn")
    for got, batch in zip(spawned, loader(collate, workers=0), strict=True):
        assert_same(got, batch)


def test_images_of_different_sizes() -> None:
    images = [torch.full((3, 4 + k, 5), k, dtype=torch.uint8) for k in range(5)]
    sampler = JointBatchSampler([Stream("a", 5, 4)], seed=1, steps_per_epoch=STEPS)
    data = JointDataset([Domain("a", images, [{"boxes": torch.full((k, 4), float(k))} for k in range(5)])])
    for batch in DataLoader(data, batch_sampler=sampler, collate_fn=SharedMemoryCollator(2), num_workers=2):
        assert isinstance(batch.x, torch.Tensor)
        assert batch.sizes.tolist() == [[4 + index, 5] for index in batch.index.tolist()]
        for x, y, index in zip(batch.x, batch.y, batch.index.tolist(), strict=True):
            assert x[:, : 4 + index].equal(images[index])
            assert not x[:, 4 + index :].any()
            assert y["boxes"].equal(torch.full((index, 4), float(index)))


def test_tokens_and_texts_come_through_the_slots() -> None:
    def tokens(index: int) -> dict[str, Any]:
        ids = torch.arange(1 + index % 3)
        return {"ids": ids, "attention_mask": torch.ones_like(ids), "text": f"number {index}"}

    def make(name: str, length: int) -> Domain:
        return Domain(name, [tokens(index) for index in range(length)], np.arange(length))

    def same(x: dict[str, Any]) -> dict[str, Any]:
        return x

    data = JointDataset([make("a", 5), make("b", 4).unlabelled()], views={"same": same})
    sampler = JointBatchSampler([Stream("a", 5, 4), Stream("b", 4, 4)], seed=1, steps_per_epoch=STEPS)
    expected = list(DataLoader(data, batch_sampler=sampler, collate_fn=collate))
    found = DataLoader(data, batch_sampler=sampler, collate_fn=SharedMemoryCollator(1), num_workers=1)
    for got, batch in zip(found, expected, strict=True):
        for one, other in ((got.x, batch.x), (got.views["same"], batch.views["same"])):
            assert type(one) is type(other)
            assert one["text"] == other["text"]
            assert one["ids"].equal(other["ids"])
        assert len({part.untyped_storage().data_ptr() for part in (got.x["ids"], got.y, got.views["same"]["ids"])}) == 1
