"""What a test-time method meets on each kind of stream, and what is kept of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import measure

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.data.target_stream import Segment, TargetStream
from dafw.errors import UserError
from dafw.losses.entropy import entropy
from dafw.methods import Losses, SourceOnly, TestTimeMethod
from dafw.run.artifacts import run_title
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_domain, toy_network, toy_trainer


class Follower(TestTimeMethod):
    """The mean entropy of a batch falls."""

    def adapt(self, outputs: Any, batch: Any) -> Losses:
        assert not len(batch.y)
        self.seen = [*getattr(self, "seen", []), batch]
        return {"entropy": entropy(outputs.logits).mean()}


class Fog(ToyData):
    """Two kinds of corruption at five severities."""

    domain_names = ("a", *(f"{kind}_{severity}" for kind in ("fog", "snow") for severity in range(1, 6)))

    def load(self, name: str, split: Split) -> Domain:
        return toy_domain(name, 21, split)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a source model."""
    folder = tmp_path_factory.mktemp("start")
    _, trainer = case(SourceOnly).train(folder, epochs=2)
    trainer.save_checkpoint(folder / "step=1.ckpt")
    return str(folder / "step=1.ckpt")


def run(folder: Path, start: str, data: ToyData, **arguments: Any) -> Follower:
    method = Follower(toy_network(), **{"num_classes": 3, "lr": 0.5, "checkpoint": start, **arguments})
    toy_trainer(folder, epochs=1).fit(method, datamodule=data)
    return method


def test_every_visit_is_scored(start: str, tmp_path: Path) -> None:
    data = ToyData("a", ["b", "c"], batch_size=8, stream=TargetStream(rounds=2), images_per_domain=10)
    method = run(tmp_path, start, data)
    found = measure(toy_trainer(tmp_path), method, data)
    plan = data.stream_plan
    assert len(plan) == 40
    assert method.served.step.tolist() == plan.batch.tolist()
    correct = method.served.logits.argmax(1) == torch.from_numpy(2 * plan.rows.index % 3)  # every other sample
    for number, name in enumerate("bc"):
        own = torch.from_numpy(plan.rows.domain == number)
        assert int(own.sum()) == 20
        assert found[f"test/{name}/accuracy"] == pytest.approx(float(correct[own].float().mean()))
    first = method.served.of(data.streamed("b"), torch.arange(10))
    latest = method.served.of(data.domain("b", "test"), torch.arange(10))
    assert not torch.equal(first, latest)
    assert torch.equal(latest, method.served.of(data.streamed("b"), torch.arange(10, 20)))


def test_gradual_brings_the_severities_of_a_target(start: str, tmp_path: Path) -> None:
    data = Fog("a", "fog_5", batch_size=8, stream="gradual", images_per_domain=8)
    method = run(tmp_path, start, data)
    assert data.target == [f"fog_{severity}" for severity in range(1, 6)]
    assert data.stream_starts == list(range(9))
    assert [batch.domain.unique().tolist() for batch in method.seen] == [[n] for n in (0, 1, 2, 3, 4, 3, 2, 1, 0)]
    found = measure(toy_trainer(tmp_path), method, data)
    assert {name.split("/")[1] for name in found} == set(data.target)
    assert re.fullmatch(
        r"Follower, a->fog_1 and 4 more, .*, accuracy 0\.\d+ on average, n = 72", run_title(method, data)
    )
    with pytest.raises(UserError, match='unknown domain "frog_1": did you mean "fog_1"'):
        Fog("a", "frog_5", stream="gradual")


class Cautious(Follower):
    """Returns to the start before each step whose number its rule names."""

    own_reset = "before its third and its fifth step"

    def restart_due(self) -> bool:
        return self.step in (2, 4)


@pytest.mark.parametrize(
    ("method", "stream", "reset", "restarts", "policy"),
    [
        (Follower, "continual", "never", 0, "never"),
        (Follower, "continual", "shift", 1, "at each shift"),
        (Follower, "reset_each_shift", "never", 1, "at each shift"),
        (Follower, "reset_each_shift", 2, 3, "at each shift, and every 2 steps"),
        (Follower, "mixed", 2, 2, "every 2 steps"),
        (Cautious, "continual", "own", 2, "before its third and its fifth step"),
        (Cautious, "continual", "never", 0, "never"),
    ],
)
def test_the_reset_policy_is_one_argument(
    method: type[Follower], stream: str, reset: Any, restarts: int, policy: str, start: str, tmp_path: Path
) -> None:
    made = method(toy_network(), num_classes=3, checkpoint=start, reset=reset)
    data = ToyData("a", ["b", "c"], batch_size=8, stream=stream)
    toy_trainer(tmp_path, epochs=1).fit(made, datamodule=data)
    assert int(made.restarts) == restarts
    assert made.reset_policy == policy
    assert made.knows_shifts == ("shift" in policy)


def test_resets_that_cannot_be(start: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Follower has no rule of its own: give another model\.reset than own"):
        Follower(toy_network(), num_classes=3, checkpoint=start, reset="own")
    with pytest.raises(UserError, match="reset must be at least 1, not 0"):
        Follower(toy_network(), num_classes=3, checkpoint=start, reset=0)
    with pytest.raises(UserError, match="a mixed stream has no shifts to return to the start at"):
        run(tmp_path, start, ToyData("a", ["b", "c"], batch_size=8, stream="mixed"), reset="shift")


def test_part_of_a_domain_is_scored_and_predicted(start: str, tmp_path: Path) -> None:
    segments = [Segment("fog", 3, 5), Segment("snow", 3), Segment("fog", 3, 3)]
    data = Fog("a", "fog_3", batch_size=8, stream=TargetStream(segments=segments))
    method = run(tmp_path, start, data)
    assert [len(batch) for batch in method.seen] == [5, 8, 8, 5, 3]
    measure(toy_trainer(tmp_path), method, data)
    assert method.evaluator.num_target_test == 29
    predicted = toy_trainer(tmp_path).predict(method, datamodule=data)
    assert [sum(len(batch["index"]) for batch in domain) for domain in predicted] == [8, 21]


def test_a_window_serves_its_newest_sample(start: str, tmp_path: Path) -> None:
    data = ToyData("a", "b", batch_size=1, stream=TargetStream(window=4), images_per_domain=7)
    method = run(tmp_path, start, data)
    assert [len(batch) for batch in method.seen] == [1, 2, 3, 4, 4, 4, 4]
    assert [batch.num_again for batch in method.seen] == [0, 1, 2, 3, 3, 3, 3]
    assert method.served.step.tolist() == list(range(7))
    assert bool(method.served.done.all())
    with pytest.raises(UserError, match=r"data\.stream\.window is for batches of one sample: give data\.target_batch"):
        ToyData("a", "b", batch_size=2, stream=TargetStream(window=4))


def test_labels_decide_the_order_of_a_correlated_stream_alone(start: str, tmp_path: Path) -> None:
    data = ToyData("a", ["b", "c"], batch_size=8, stream="correlated")
    method = run(tmp_path, start, data)
    assert all(domain.labels is None for domain in data.train_domains)
    classes = torch.cat([batch.index for batch in method.seen]) % 3
    assert float((classes[1:] == classes[:-1]).float().mean()) > 0.7


def test_images_per_domain_holds_for_every_method(tmp_path: Path) -> None:
    data = ToyData("a", ["b", "c"], batch_size=8, images_per_domain=10)
    measure(toy_trainer(tmp_path), SourceOnly(toy_network(), num_classes=3), data)
    assert len(data.domain("a", "test")) == 21
    assert [len(one.domain) for one in data.evaluations("test")] == [21, 10, 10]
    few, whole = data.domain("b", "test"), data.load("b", "test")
    spread = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]  # a folder has its classes one after the other
    assert all(torch.equal(few.inputs[number], whole.inputs[place]) for number, place in enumerate(spread))
    assert [few.id(number) for number in range(10)] == [f"b/{place}" for place in spread]
