"""The joint batch: labels for source rows only, augmentation that depends on nothing but the sample and the pass."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dafw.data import ArrayImages, Batch, Domain, Draw, JointBatchSampler, JointDataset, Sample, Stream, collate
from dafw.testing.toys import jitter, toy_domain


def noisy(x: Tensor) -> Tensor:
    return x.float() + torch.rand(())


def draws(length: int = 12) -> list[Draw]:
    return [Draw(0, k % 5, k // 5) for k in range(length)] + [Draw(1, k % 4, k // 4) for k in range(length)]


def dataset(**options: Any) -> JointDataset:
    return JointDataset([toy_domain("a", 5), toy_domain("b", 4).unlabelled()], **options)


def test_labels_of_source_rows_only() -> None:
    batch = collate([dataset()[one] for one in draws()])
    assert batch.x.shape == (24, 3, 6, 6)
    assert batch.x.dtype == torch.uint8
    assert batch.num_source == len(batch.y) == 12
    assert batch.domain.tolist() == [0] * 12 + [1] * 12
    assert batch.index.tolist() == [one.index for one in draws()]
    assert batch.y.tolist() == [toy_domain("a", 5).labels[one.index] for one in draws()[:12]]  # type: ignore[index]


def test_no_label_of_the_target_can_be_reached() -> None:
    """Every object reachable from the training dataset is searched for the target's labels."""
    secret = np.array([101, 102, 103, 104])
    domain = Domain("b", toy_domain("b", 4).inputs, secret)
    data = JointDataset([toy_domain("a", 5), domain.unlabelled()], augment=jitter, views={"strong": jitter})
    waiting, seen = [data], set()
    while waiting:
        thing: Any = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        assert thing is not secret
        if isinstance(thing, np.ndarray | Tensor):
            assert not np.isin(np.asarray(thing), secret).all() or thing.size == 0
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple | set):
            waiting += thing
        elif hasattr(thing, "__dict__"):
            waiting += vars(thing).values()
    assert data.domains[1].labels is None
    assert data[Draw(1, 0, 0)].y is None


def test_an_unlabelled_sample_before_a_labelled_one_is_refused() -> None:
    data = dataset()
    with pytest.raises(ValueError, match="labelled samples must come first"):
        collate([data[Draw(1, 0, 0)], data[Draw(0, 0, 0)]])


def test_augmentation_is_a_function_of_sample_and_pass() -> None:
    one, other = (dataset(augment=noisy, views={"strong": noisy}, seed=4) for _ in range(2))
    torch.manual_seed(0)
    forward = {draw: one[draw] for draw in draws()}
    torch.manual_seed(99)
    for draw in reversed(draws()):
        assert torch.equal(forward[draw].x, other[draw].x)
        assert torch.equal(forward[draw].views["strong"], other[draw].views["strong"])
        assert not torch.equal(forward[draw].x, forward[draw].views["strong"])
    offsets = {float((sample.x - dataset()[draw].x.float()).mean()) for draw, sample in forward.items()}
    assert len(offsets) == len(forward)  # another sample or pass, another augmentation
    assert not torch.equal(dataset(augment=noisy, seed=5)[draws()[0]].x, forward[draws()[0]].x)


def test_augmentation_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _ = dataset(augment=noisy)[Draw(0, 0, 0)]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_workers_changes_nothing() -> None:
    streams = [Stream("a", 5, 4), Stream("b", 4, 4)]

    def batches(workers: int) -> list[Batch]:
        sampler = JointBatchSampler(streams, seed=1, steps_per_epoch=3)
        loader = DataLoader(dataset(augment=noisy), batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        return list(loader)

    for one, other in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.index, other.index)


def test_boxes_of_images_of_different_sizes() -> None:
    """A batch of detection: images of any size, a dictionary of boxes each; the sampler and the collate do not mind."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 255, (3, 8 + k, 9)).astype(np.uint8)) for k in range(6)]
    targets = [{"boxes": torch.rand(k, 4), "labels": torch.ones(k, dtype=torch.int64)} for k in range(6)]
    domains = [Domain("a", images, targets), Domain("b", images, targets).unlabelled()]
    sampler = JointBatchSampler([Stream("a", 6, 3), Stream("b", 6, 2)], seed=0, steps_per_epoch=2)
    loader = DataLoader(JointDataset(domains), batch_sampler=sampler, collate_fn=collate)
    for batch in loader:
        height = 8 + int(batch.index.max())
        assert batch.x.shape == (5, 3, height, 9)
        assert batch.num_source == len(batch.y) == 3
        assert batch.sizes.tolist() == [[8 + k, 9] for k in batch.index.tolist()]
        for x, y, index in zip(batch.x, [*batch.y, None, None], batch.index.tolist(), strict=True):
            assert torch.equal(x[:, : 8 + index], images[index])
            assert not x[:, 8 + index :].any()
            assert y is None or torch.equal(y["boxes"], targets[index]["boxes"])
        moved = batch.to("meta")
        assert {moved.x.device.type, moved.sizes.device.type} == {"meta"}
        assert moved.y[0]["boxes"].device.type == "meta"
        assert moved.num_source == 3


def test_domains_check_their_lengths_and_subsets_keep_names() -> None:
    images = ArrayImages(np.zeros((3, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="3 inputs but 2 labels"):
        Domain("a", images, [0, 1])
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W, C\)"):
        ArrayImages(np.zeros((3, 2, 2), np.uint8))
    part = Domain("a", images, np.array([5, 6, 7])).subset([2, 0])
    assert (part.id(0), part.id(1)) == ("a/2", "a/0")
    assert list(part.labels) == [7, 5]  # type: ignore[arg-type]
    assert len(part) == 2
    assert part.inputs[0].shape == (3, 2, 2)


def test_a_sample_without_views() -> None:
    sample = dataset()[Draw(0, 1, 0)]
    assert isinstance(sample, Sample)
    assert sample.views == {}
