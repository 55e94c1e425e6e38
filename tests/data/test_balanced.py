"""Class-balanced rows: a function of seed, step and pseudo-labels."""

from collections import Counter

import numpy as np
import pytest

from dafw.data import Draw, JointBatchSampler, Stream
from dafw.data.balanced import Pools, draw_balanced
from dafw.data.sampler import ExtraDraws

SOURCE = [np.arange(20) % 4, np.arange(12) % 4]
TARGET = [np.array([-1, 0, 0, 2, 2, 2, -1, 0, 2, 5])]


def test_pools_are_of_the_classes_that_both_sides_have() -> None:
    pools = Pools.of(SOURCE, TARGET)
    assert [pool.tolist() for pool in pools.target] == [[[2, 1], [2, 2], [2, 7]], [[2, 3], [2, 4], [2, 5], [2, 8]]]
    assert [len(pool) for pool in pools.source] == [8, 8]
    for label, pool in zip((0, 2), pools.source, strict=True):
        assert {int(SOURCE[domain][index]) for domain, index in pool} == {label}


def test_without_a_common_class_there_is_one_of_all() -> None:
    pools = Pools.of(SOURCE, [np.full(10, -1)])
    assert [len(pool) for pool in (*pools.source, *pools.target)] == [32, 10]


def draws(step: int, classes: int = 2, per_class: int = 3) -> tuple[list[Draw], list[Draw]]:
    return draw_balanced(Pools.of(SOURCE, TARGET), 3, step, classes, per_class)


def class_of(one: Draw) -> int:
    return int((SOURCE + TARGET)[one.domain][one.index])


def test_the_rows_come_class_by_class_alike_on_both_sides() -> None:
    for step in range(30):
        source, target = draws(step)
        names = [class_of(one) for one in source]
        assert names == [class_of(one) for one in target]
        assert names in ([0, 0, 0, 2, 2, 2], [2, 2, 2, 0, 0, 0])
        assert len({one[:2] for one in source}) == len({one[:2] for one in target}) == 6
        assert draws(step) == (source, target)
    assert len({str(draws(step)) for step in range(30)}) == 30
    counts = Counter(one.index for step in range(300) for one in draws(step, per_class=2)[1])
    assert min(counts.values()) > 100


def test_too_few_classes_or_samples_repeat() -> None:
    source, target = draws(0, classes=3, per_class=5)
    assert len(source) == len(target) == 15
    assert class_of(source[0]) == class_of(source[10]) != class_of(source[5])
    assert [class_of(one) for one in source] == [class_of(one) for one in target]


ASKED: list[int] = []


def sampler(rank: int = 0, world_size: int = 1, steps_done: int = 0) -> JointBatchSampler:
    def extra_draws() -> ExtraDraws:
        ASKED.append(steps_done)
        return lambda step: draws(step, 2, 2)

    streams = [Stream("a", 20, 4), Stream("c", 12, 4), Stream("b", 10, 2), Stream("b/held-out", 6, 2)]
    return JointBatchSampler(
        streams,
        seed=3,
        steps_per_epoch=5,
        steps_done=lambda: steps_done,
        rank=rank,
        world_size=world_size,
        extra_draws=extra_draws,
        places=(2, 3),
    )


def test_they_come_behind_the_random_rows_of_their_side() -> None:
    for step, batch in enumerate(sampler()):
        source, target = draws(step, 2, 2)
        assert batch[8:12] == source
        assert batch[14:18] == target
        assert [one.domain for one in batch[:8] + batch[12:14] + batch[18:]] == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 2


def test_the_ranks_share_them() -> None:
    parts = [list(sampler(rank, 2)) for rank in range(2)]
    for step, (one, other) in enumerate(zip(*parts, strict=True)):
        source, target = draws(step, 2, 2)
        assert [d for pair in zip(one[4:6], other[4:6], strict=True) for d in pair] == source
        assert [d for pair in zip(one[7:9], other[7:9], strict=True) for d in pair] == target


@pytest.mark.parametrize("steps_done", [0, 3, 5])
def test_they_are_asked_for_once_an_epoch_and_go_on_at_any_step(steps_done: int) -> None:
    ASKED.clear()
    found = list(sampler(steps_done=steps_done))
    assert [steps_done] == ASKED
    every = [*sampler(), *sampler(steps_done=5)]
    assert found == every[steps_done : 5 + steps_done // 5 * 5]
