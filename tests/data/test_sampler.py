"""Stateless sampling: what a batch holds is a function of seed, step and rank."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from dafw.data import Domain, Draw, JointBatchSampler, ShardSampler, Stream
from dafw.data.balanced import rows_by_class
from dafw.data.sampler import draw
from dafw.data.stream_plan import StreamSampler, plan_of
from dafw.data.target_stream import TargetStream

STREAMS = [Stream("a", 11, 4), Stream("b", 7, 6)]


def sampler(steps_done: int = 0, *, seed: int = 3, rank: int = 0, world_size: int = 1) -> JointBatchSampler:
    return JointBatchSampler(
        STREAMS, seed=seed, steps_per_epoch=5, steps_done=lambda: steps_done, rank=rank, world_size=world_size
    )


def test_every_pass_is_a_new_permutation() -> None:
    passes = [[draw(0, "a", cycle * 11 + k, 11) for k in range(11)] for cycle in range(4)]
    for cycle, found in enumerate(passes):
        assert sorted(index for index, _ in found) == list(range(11))
        assert {c for _, c in found} == {cycle}
    assert len({tuple(index for index, _ in found) for found in passes}) == 4


def test_seed_and_domain_change_the_order() -> None:
    orders = {tuple(draw(seed, name, k, 50)[0] for k in range(50)) for seed in (0, 1) for name in ("a", "b")}
    assert len(orders) == 4


def test_composition_and_order_of_a_batch() -> None:
    for batch in sampler():
        assert [one.domain for one in batch] == [0] * 4 + [1] * 6


def test_each_domain_is_passed_evenly() -> None:
    draws = [one for step in range(77) for one in sampler().batch(step)]
    for domain, stream in enumerate(STREAMS):
        counts = Counter(one.index for one in draws if one.domain == domain)
        assert set(counts.values()) == {77 * stream.count // stream.length}


@pytest.mark.parametrize("steps_done", [0, 1, 4, 5, 7, 12])
def test_it_goes_on_from_any_step_to_the_end_of_the_epoch(steps_done: int) -> None:
    end = (steps_done // 5 + 1) * 5
    assert list(sampler(steps_done)) == [sampler().batch(step) for step in range(steps_done, end)]
    assert len(sampler(steps_done)) == 5


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_ranks_share_the_batch_of_one_process(world_size: int) -> None:
    for step in range(20):
        whole = sampler().batch(step)
        parts = [sampler(rank=rank, world_size=world_size).batch(step) for rank in range(world_size)]
        assert sorted(one for part in parts for one in part) == sorted(whole)
        assert {len(part) for part in parts} == {len(whole) // world_size}
        for domain in range(2):
            mine = [[one for one in part if one.domain == domain] for part in parts]
            together = [one for group in zip(*mine, strict=True) for one in group]
            assert together == [one for one in whole if one.domain == domain]


LABELS = np.array([0] * 20 + [3] * 5 + [7] * 2)
BALANCED = [Stream("a", 27, 6, rows_by_class(LABELS)), STREAMS[1]]


def balanced(steps_done: int = 0, rank: int = 0, world_size: int = 1) -> JointBatchSampler:
    return JointBatchSampler(
        BALANCED, seed=3, steps_per_epoch=5, steps_done=lambda: steps_done, rank=rank, world_size=world_size
    )


def test_a_balanced_stream_has_every_class_equally_often_and_passes_over_its_samples() -> None:
    batches = [balanced().batch(step) for step in range(40)]
    for batch in batches:
        drawn = [int(LABELS[one.index]) for one in batch if one.domain == 0]
        assert Counter(drawn) == {0: 2, 3: 2, 7: 2}
    for label in (0, 3, 7):
        rows = np.flatnonzero(label == LABELS)
        seen = [one for batch in batches for one in batch if one.domain == 0 and LABELS[one.index] == label]
        for start in range(0, len(seen) - len(rows) + 1, len(rows)):
            one_pass = seen[start : start + len(rows)]
            assert sorted(one.index for one in one_pass) == rows.tolist()
            assert {one.cycle for one in one_pass} == {start // len(rows)}
    orders = {tuple(LABELS[[one.index for one in batch[:3]]]) for batch in batches}
    assert len(orders) > 3
    plain = [[one for one in sampler().batch(step) if one.domain == 1] for step in range(40)]
    assert [batch[6:] for batch in batches] == plain  # the target's draws are as before


def test_a_balanced_stream_goes_on_from_any_step_and_is_shared_by_ranks() -> None:
    assert list(balanced(7)) == [balanced().batch(step) for step in (7, 8, 9)]
    for step in range(10):
        parts = [balanced(rank=rank, world_size=2).batch(step) for rank in range(2)]
        assert sorted(parts[0] + parts[1]) == sorted(balanced().batch(step))


def test_ranks_that_cannot_share_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="4 ranks cannot share 6 samples of b"):
        sampler(world_size=4)


@pytest.mark.parametrize("length", [1, 5, 8, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_covers_every_sample_once(length: int, world_size: int) -> None:
    shards = [ShardSampler(length, 2, domain=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    draws = [one for shard in shards for batch in shard for one in batch]
    assert sorted(draws) == [Draw(1, index, 0) for index in range(length)]
    assert all(len(shard) == len(list(shard)) for shard in shards)
    assert all(len(batch) <= 2 for shard in shards for batch in shard)


# ---- the stream of a test-time method

LONG = {"a": 10, "b": 10, "c": 3}


def stream(lengths: dict[str, int], *, seed: int | None, **options: Any) -> StreamSampler:
    """A stream of domains of these lengths, in batches of four."""
    domains = [Domain(name, list(range(length)), None) for name, length in lengths.items()]
    return StreamSampler(plan_of(TargetStream(), list(lengths), domains, seed=seed, batch_size=4), **options)


def test_a_stream_serves_each_sample_once_domain_after_domain() -> None:
    sampler = stream(LONG, seed=1)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 3]
    assert len(sampler) == len(batches) == 7
    assert sampler.plan.first_batches == [0, 3, 6]
    orders = [[draw.index for batch in batches for draw in batch if draw.domain == domain] for domain in range(3)]
    assert [sorted(order) for order in orders] == [list(range(10)), list(range(10)), list(range(3))]
    assert orders[0] != orders[1]
    assert [draw.index for batch in stream(LONG, seed=2) for draw in batch if draw.domain == 0] != orders[0]
    stored = [draw.index for batch in stream(LONG, seed=None) for draw in batch]
    assert stored == [*range(10), *range(10), *range(3)]


@pytest.mark.parametrize("steps", range(8))
def test_a_stream_goes_on_at_any_batch(steps: int) -> None:
    whole = list(stream(LONG, seed=1))
    assert list(stream(LONG, seed=1, steps_done=lambda: steps)) == whole[steps:]


def test_ranks_share_a_stream() -> None:
    streams = {"a": 10, "b": 4}
    whole = list(stream(streams, seed=1))
    shares = [list(stream(streams, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [draw for pair in zip(*parts, strict=True) for draw in pair] == batch
    with pytest.raises(ValueError, match="2 ranks cannot share 3 samples of c equally"):
        stream(LONG, seed=1, world_size=2)
