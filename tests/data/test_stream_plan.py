"""The order of a stream is a function of the seed and the position: what it visits, how it mixes, how it goes on."""

from typing import Any

import numpy as np
import pytest

from dafw.data import Domain
from dafw.data.stream_plan import StreamPlan, StreamSampler, plan_of
from dafw.data.target_stream import Segment, TargetStream
from dafw.errors import UserError


def domains(*names: str, length: int = 12, labels: bool = True) -> list[Domain]:
    return [Domain(name, list(range(length)), np.arange(length) % 4 if labels else None) for name in names]


def made(stream: TargetStream, *names: str, seed: int | None = 1, batch_size: int = 4, **options: Any) -> StreamPlan:
    found = stream.domains(names)
    return plan_of(stream, names, domains(*found, **options), seed=seed, batch_size=batch_size)


def samples(plan: StreamPlan) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in plan.rows), strict=True))


EVERY = {
    "continual": TargetStream(),
    "gradual": TargetStream(order="gradual"),
    "mixed": TargetStream(order="mixed"),
    "correlated": TargetStream(correlated=0.1),
    "correlated, gradual": TargetStream(order="gradual", correlated=0.1),
    "correlated, mixed": TargetStream(order="mixed", correlated=0.1),
    "recurring": TargetStream(rounds=2),
    "window": TargetStream(window=3),
    "list": TargetStream(segments=[Segment("fog", 5, 8), Segment("snow_5"), Segment("fog", 5, 6)]),
}
every_stream = pytest.mark.parametrize("stream", EVERY.values(), ids=EVERY.keys())


@every_stream
def test_a_stream_is_a_function_of_the_seed(stream: TargetStream) -> None:
    size = 1 if stream.window > 1 else 4
    one, again, other = (made(stream, "fog_5", "snow_5", seed=seed, batch_size=size) for seed in (1, 1, 2))
    assert samples(one) == samples(again)
    assert samples(one) != samples(other)
    assert len(set(samples(one))) == len(one)
    whole = list(StreamSampler(one))
    assert [draw.place for batch in whole for draw in batch if not draw.again] == list(range(len(one)))
    for steps in (0, 3, len(whole) - 1, len(whole)):
        assert list(StreamSampler(one, steps_done=lambda done=steps: done)) == whole[steps:]  # type: ignore[misc]


@every_stream
def test_ranks_share_a_stream(stream: TargetStream) -> None:
    plan = made(stream, "fog_5", "snow_5", batch_size=1 if stream.window > 1 else 4)
    if stream.window > 1:
        with pytest.raises(ValueError, match="2 ranks cannot share 1 samples of fog_5 equally"):
            StreamSampler(plan, world_size=2)
        return
    parts = [list(StreamSampler(plan, rank=rank, world_size=2)) for rank in range(2)]
    for whole, *shares in zip(StreamSampler(plan), *parts, strict=True):
        assert [draw for pair in zip(*shares, strict=True) for draw in pair] == whole


def test_domains_of_one_length_have_orders_of_their_own() -> None:
    plan = made(TargetStream(rounds=2), "fog_5", "snow_5")
    orders = [tuple(plan.rows.index[start : start + 12]) for start in plan.starts]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert plan.segments == ("fog_5", "snow_5") * 2
    assert plan.rows.visit.tolist() == [0] * 24 + [1] * 24


def test_gradual_comes_back_to_a_severity() -> None:
    stream = TargetStream(order="gradual")
    names = stream.domains(["fog_5", "fog_2", "snow_3"])
    assert names == [f"{kind}_{severity}" for kind in ("fog", "snow") for severity in range(1, 6)]
    plan = made(stream, "fog_5", "fog_2", "snow_3")
    assert plan.segments == tuple(f"{kind}_{one}" for kind in ("fog", "snow") for one in (1, 2, 3, 4, 5, 4, 3, 2, 1))
    index, visit = plan.served(names.index("fog_1"))
    assert index.tolist() == [*range(12)] * 2
    assert visit.tolist() == [0] * 12 + [1] * 12
    assert plan.served(names.index("fog_5"))[0].tolist() == [*range(12)]
    with pytest.raises(UserError, match="the target clean has none: name targets like fog_5"):
        stream.domains(["clean"])


def test_a_mixed_stream_has_batches_of_all_domains() -> None:
    plan = made(TargetStream(order="mixed"), "fog_5", "snow_5", length=100)
    assert plan.segments == ("mixed",)
    assert np.abs(plan.rows.domain[:100].mean() - 0.5) < 0.2
    assert sorted(samples(plan)) == [(domain, index, 0) for domain in range(2) for index in range(100)]


@pytest.mark.parametrize("order", ["continual", "mixed"])
def test_classes_gather_in_a_correlated_stream(order: Any) -> None:
    def repeats(delta: float | None) -> float:
        plan = made(TargetStream(order=order, correlated=delta), "fog_5", "snow_5", length=400)
        assert sorted(samples(plan)) == [(domain, index, 0) for domain in range(2) for index in range(400)]
        classes = plan.rows.index % 4
        return float((classes[1:] == classes[:-1]).mean())

    assert repeats(None) < 0.35
    assert repeats(0.1) > 0.9


def test_the_segments_of_a_list_go_on_in_the_order_of_their_domain() -> None:
    stream = TargetStream(segments=[Segment("fog", 5, 8), Segment("snow_5"), Segment("fog", 5, 6)])
    plan = made(stream, "fog_5")
    whole = made(TargetStream(rounds=2), "fog_5")
    assert stream.domains(["fog_5"]) == ["fog_5", "snow_5"]
    assert plan.segments == ("fog_5", "snow_5", "fog_5")
    assert plan.starts.tolist() == [0, 8, 20]
    own = plan.rows.domain == 0
    assert plan.rows.index[own].tolist() == whole.rows.index[:14].tolist()
    assert plan.rows.visit[own].tolist() == [0] * 12 + [1] * 2
    with pytest.raises(UserError, match=r"never visits the target rain_5: leave it out of data\.target"):
        stream.domains(["fog_5", "rain_5"])


def test_a_window_holds_the_latest_samples() -> None:
    batches = list(StreamSampler(made(TargetStream(window=3), "fog_5", "snow_5", batch_size=1)))
    assert len(batches) == 24
    assert [[draw.place for draw in batch] for batch in batches[:4]] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert [[draw.again for draw in batch] for batch in batches[:3]] == [[False], [True, False], [True, True, False]]
    assert [draw.domain for draw in batches[12]] == [0, 0, 1]
    known = TargetStream(window=3, reset_each_shift=True)
    assert [draw.domain for draw in StreamSampler(made(known, "fog_5", "snow_5", batch_size=1)).batch(12)] == [1]


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r'unknown data\.stream "gradul": did you mean "gradual"\?'):
        TargetStream.named("gradul")
    with pytest.raises(UserError, match=r"a mixed stream has no shifts, so data\.stream\.reset_each_shift"):
        TargetStream(order="mixed", reset_each_shift=True)
    with pytest.raises(UserError, match="ordered by the classes of its samples, and fog_5 has no labels"):
        made(TargetStream(correlated=0.1), "fog_5", labels=False)
    with pytest.raises(UserError, match="the stream has 12 samples, fewer than a batch of 13"):
        made(TargetStream(), "fog_5", batch_size=13)
    with pytest.raises(UserError, match=r"has a random order: leave out data\.stream_order stored"):
        made(TargetStream(order="mixed"), "fog_5", seed=None)
    with pytest.raises(UserError, match=r"data\.stream\.rounds must be at least 1, not 0"):
        TargetStream(rounds=0)
