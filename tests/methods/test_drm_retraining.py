"""DRM's retraining: what it learns of the test stream, what it leaves alone, and where it refuses to."""

import copy
import math
from functools import reduce
from operator import add
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import measure
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import DRM, DRMRetraining, SourceOnly
from dafw.methods.generalization.drm import mixture
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import ToyData, toy_network, toy_trainer


def trained_drm(folder: Path, sources: list[str], **arguments: Any) -> str:
    """A checkpoint of a model that was trained a little."""
    _, trainer = case(DRM, data_arguments={"source": sources}, **arguments).train(folder, epochs=6)
    trainer.save_checkpoint(folder / "trained.ckpt")
    return str(folder / "trained.ckpt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two sources."""
    return trained_drm(tmp_path_factory.mktemp("drm"), ["a", "c"], ema_decay=0.5)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one source, which leaves two targets."""
    return trained_drm(tmp_path_factory.mktemp("drm"), ["a"], ema_decay=0.5)


RETRAINED: dict[str, Any] = {"confidence": 0.0, "lr": 1.0}


def make(checkpoint: str, **changes: Any) -> DRMRetraining:
    given = {"num_classes": 3, "num_sources": 2, "lr": 0.05, **changes}
    return DRMRetraining(toy_network(), checkpoint=checkpoint, **given)


def follow(method: DRMRetraining, folder: Path, data: ToyData | None = None, **options: Any) -> DRMRetraining:
    """Passes once over the stream."""
    data = data or ToyData(["a", "c"], "b", batch_size=4)
    toy_trainer(folder, epochs=1, **options).fit(method, datamodule=data)
    return method


def one_batch() -> ToyData:
    """Nine test samples, which come in one batch and in their stored order."""
    return ToyData(["a", "c"], "b", count=16, batch_size=9, stream_order="stored")


def toy_rows() -> Batch:
    domain = one_batch().load("b", "test")
    none = torch.zeros(9, dtype=torch.int64)
    return Batch(torch.stack([domain.inputs[i] for i in range(9)]), torch.empty(0), none, none, 0)


def weights(method: DRMRetraining) -> dict[str, Tensor]:
    """The weights that may learn; those of the shared head come after the sources' own."""
    found = {name: value.clone() for name, value in method.state_dict().items() if name.startswith("network")}
    heads = (*method.heads, method.network.label_head())
    for position, head in enumerate(heads):
        found |= {f"heads.{position}.{name}": value.clone() for name, value in head.state_dict().items()}
    return found


# ---- what is served, and what it is compared with


@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_one_run_gives_both_numbers(retrain: str, checkpoint: str, tmp_path: Path) -> None:
    start = DRM.load(checkpoint)
    data = ToyData(["a", "c"], "b", batch_size=4)
    plain = measure(toy_trainer(tmp_path), start, data)
    plain = {name: value for name, value in plain.items() if name.startswith("test/b/")}
    assert not start.transductive_reason
    method = make(checkpoint, retrain=retrain, labels="shared", **RETRAINED)
    before = {name: value.clone() for name, value in method.state_dict().items() if name.startswith("start")}
    follow(method, tmp_path)
    found = measure(toy_trainer(tmp_path), method, data)
    assert "retrained" in method.transductive_reason
    after = method.state_dict()
    assert not differences({name: after[name] for name in before}, before), "the trained weights were touched"
    for name, value in plain.items():
        assert found[f"{name}_without_adaptation"] == value
    assert set(found) == {*plain, *(f"{name}_without_adaptation" for name in plain)}
    assert found != found | plain, "retraining changed no prediction"


@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_each_target_starts_from_the_trained_weights(retrain: str, single: str, tmp_path: Path) -> None:
    def measured(targets: list[str], **changes: Any) -> dict[str, float]:
        data = ToyData("a", targets, batch_size=4)
        method = make(single, num_sources=1, retrain=retrain, labels="own", **RETRAINED, **changes)
        return measure(toy_trainer(tmp_path), follow(method, tmp_path, data), data)

    both, alone = measured(["b", "c"]), measured(["c"])
    assert alone == {name: both[name] for name in alone}
    assert any("test/c" in name for name in alone)
    assert alone != {name: value for name, value in measured(["b", "c"], reset="never").items() if name in alone}


@pytest.mark.parametrize("mode", ["paper", "authors"])
@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_it_is_what_a_loop_by_hand_does(retrain: str, mode: str, tmp_path: Path) -> None:
    """The loop that DRM once had within its test: copies of what is retrained, their own Adam, anew for each target."""
    checkpoint = trained_drm(tmp_path, ["a"], mode=mode)
    data, options = ToyData("a", ["b", "c"], batch_size=4, seed=3), {"confidence": 0.5, "steps": 2, "lr": 0.1}
    method = make(checkpoint, num_sources=1, mode=mode, retrain=retrain, labels="shared", **options)
    follow(method, tmp_path, data, precision="64-true")
    drm = DRM.load(checkpoint).double()
    data.setup("fit")
    served, updates = [], 0
    for domain in map(data.domain, "bc", ("test",) * 2):
        network, heads = copy.deepcopy(drm.network), copy.deepcopy(drm.heads)
        both = [*heads, network.label_head()]
        learning = [*network.parameters(), *heads.parameters()]
        if retrain == "heads":
            learning = [parameter for head in both for parameter in head.parameters()]
        optimizer = torch.optim.Adam(learning, 0.1)
        order = torch.tensor([draw.index for draw in stream_of(data, domain.name)])
        for rows in order.split(4):
            x = torch.stack([domain.inputs[int(row)] for row in rows])
            with torch.no_grad():
                features = network(x).features
            found = []
            for _ in range(2):
                if retrain == "network":
                    features = network(x).features
                logits = torch.stack([head(features) for head in both])
                found.append(mixture(logits.detach(), 1.0, mode))
                confidence, classes = logits[-1].detach().softmax(1).max(1)
                sure = confidence >= 0.5
                terms = [F.cross_entropy(head[sure], classes[sure]) for head in logits if bool(sure.any())]
                if terms:
                    optimizer.zero_grad()
                    torch.autograd.backward(reduce(add, terms))
                    optimizer.step()
                    updates += 1
            served.append((domain.name, rows, found[-1 if mode == "authors" else 0]))
    assert updates > 4
    for name, rows, expected in served:
        torch.testing.assert_close(method.served.of(data.domain(name, "test"), rows), expected)
    torch.testing.assert_close(dict(method.network.named_parameters()), dict(network.named_parameters()))
    torch.testing.assert_close(method.heads.state_dict(), heads.state_dict())


def stream_of(data: ToyData, name: str) -> Any:
    """The draws of one target's stream."""
    from dafw.data.stream_plan import StreamSampler, plan_of

    plan = plan_of(data.stream, [name], [data.domain(name, "test")], seed=data.seed, batch_size=4)
    return [draw for batch in StreamSampler(plan) for draw in batch]


# ---- what a step does


@pytest.mark.parametrize("retrain", ["heads", "network"])
@pytest.mark.parametrize("labels", ["own", "shared", "uniform", "mixture"])
def test_what_a_step_moves(retrain: str, labels: str, checkpoint: str, tmp_path: Path) -> None:
    method = make(checkpoint, retrain=retrain, labels=labels, **RETRAINED)
    rows = toy_rows()
    plain = DRM.load(checkpoint)(rows.x).logits
    torch.testing.assert_close(method(rows.x).logits, plain)
    start = weights(method)
    follow(method, tmp_path, one_batch())
    torch.testing.assert_close(method.served.logits, plain.detach(), msg="it was not served before the step")
    later = method.evaluate(rows, source=False)
    assert not torch.allclose(later.logits, plain)
    moved = differences(weights(method), start)
    assert {name for name in start if name.startswith("heads")} <= set(moved)
    features = {name for name in moved if name.startswith("network") and "head" not in name}
    assert bool(features) == (retrain == "network")
    assert not any("running" in name for name in features)


@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_above_one_no_confidence_is_enough(retrain: str, checkpoint: str, tmp_path: Path) -> None:
    method = make(checkpoint, retrain=retrain, confidence=1.1)
    start = weights(method)
    follow(method, tmp_path)
    assert not differences(weights(method), start)


def test_a_head_without_confident_rows_keeps_still(checkpoint: str, tmp_path: Path) -> None:
    method = make(checkpoint, retrain="heads", labels="own", confidence=0.5)
    with torch.no_grad():
        for number, head in enumerate((*method.heads, method.network.label_head())):
            scale = 5.0 if number == 0 else 1e-3
            for parameter in head.parameters():
                parameter.mul_(scale)
    start = weights(method)
    follow(method, tmp_path, one_batch())
    assert {name.split(".")[1] for name in differences(weights(method), start)} == {"0"}


def test_of_several_steps_the_paper_serves_before_the_first_and_the_authors_before_the_last(tmp_path: Path) -> None:
    served, rows = [], toy_rows()
    for mode, steps in (("paper", 2), ("authors", 2), ("paper", 1)):
        (tmp_path / mode).mkdir(exist_ok=True)
        checkpoint = trained_drm(tmp_path / mode, ["a", "c"], gamma=math.inf, mode=mode)
        options = {"retrain": "heads", "labels": "shared", "gamma": math.inf, **RETRAINED}
        method = follow(make(checkpoint, mode=mode, steps=steps, **options), tmp_path, one_batch())
        served.append(method.served.logits)
    after_one = method.evaluate(rows, source=False).logits
    assert torch.equal(served[0], served[2])
    torch.testing.assert_close(served[1], after_one.detach())
    assert not torch.allclose(served[0], served[1])


def test_a_stream_has_no_validation(checkpoint: str, tmp_path: Path) -> None:
    assert follow(make(checkpoint, retrain="network", **RETRAINED), tmp_path).history == []


def test_it_works_in_half_precision(checkpoint: str, tmp_path: Path) -> None:
    method, data = make(checkpoint, retrain="network", steps=2, **RETRAINED), ToyData("a", "b", batch_size=4)
    follow(method, tmp_path, data, precision="bf16-mixed")
    found = measure(toy_trainer(tmp_path, precision="bf16-mixed"), method, data)
    assert found
    assert all(0 <= value <= 1 for value in found.values())
    assert differences(weights(method), weights(make(checkpoint)))


def test_a_prediction_is_of_the_same_stream(checkpoint: str, tmp_path: Path) -> None:
    data = ToyData(["a", "c"], "b", batch_size=4)
    method = follow(make(checkpoint, retrain="heads", labels="shared", **RETRAINED), tmp_path, data)
    found = measure(toy_trainer(tmp_path), method, data)
    batches: Any = toy_trainer(tmp_path).predict(method, datamodule=data)
    predicted = torch.cat([batch["prediction"] for batch in batches])
    index = torch.cat([batch["index"] for batch in batches])
    right = (predicted == torch.as_tensor(data.load("b", "test").labels)[index]).float().mean()
    assert float(right) == pytest.approx(found["test/b/accuracy"])
    assert found["test/b/accuracy"] != found["test/b/accuracy_without_adaptation"]


def test_a_stream_keeps_to_the_norm_of_evaluation(checkpoint: str, tmp_path: Path) -> None:
    by_batch = make(checkpoint, retrain="network", test_statistics="batch", **RETRAINED)
    plain = DRM.load(checkpoint, test_statistics="batch")
    assert by_batch.transductive_reason.startswith(f"{plain.transductive_reason}; ")
    follow(by_batch, tmp_path, one_batch())
    with torch.no_grad():
        torch.testing.assert_close(by_batch.served.logits, plain(toy_rows().x).logits)
        assert not torch.allclose(plain(toy_rows().x).logits, DRM.load(checkpoint)(toy_rows().x).logits)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ({"world_size": 2}, {"test_statistics": "batch"}, "one process"),
        ({"precision": "16-mixed"}, {}, "sets gradients itself"),
    ],
)
def test_where_it_cannot_retrain(
    options: dict[str, Any], arguments: dict[str, Any], said: str, checkpoint: str
) -> None:
    method = make(checkpoint, **arguments)
    trainer = {"world_size": 1, "precision": "32-true", "gradient_clip_val": None, "max_steps": -1, **options}
    method._trainer = SimpleNamespace(**trainer)  # type: ignore[assignment]
    with pytest.raises(UserError, match=said):
        method.setup("fit")
    method.setup("validate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"retrain": "head"}, "retrain"),
        ({"labels": "mix"}, "labels"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"reset": "sometimes"}, "reset"),
        ({"reset": 0}, "reset"),
        ({"gamma": 2.0}, r"model\.gamma is 2\.0, but 1\.0 in the model of .*trained\.ckpt \(model\.checkpoint\)"),
        ({"mode": "authors"}, r"model\.mode is authors, but paper in the model of"),
        ({"num_sources": 3}, "has heads of 2 sources, but the data names 3"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str, checkpoint: str) -> None:
    with pytest.raises(UserError, match=said):
        make(checkpoint, **arguments)


@pytest.mark.parametrize(("arguments", "said"), [({"weight": 1.0}, "weight"), ({"gamma": -1.0}, "gamma")])
def test_wrong_arguments_of_drm(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        case(DRM).make(**arguments)


def test_it_starts_from_a_drm_whose_heads_were_trained(tmp_path: Path) -> None:
    shared = trained_drm(tmp_path, ["a", "c"], weight=0.0)
    with pytest.raises(UserError, match="weight 0: its sources' own heads never learnt"):
        make(shared)
    _, trainer = case(SourceOnly).train(tmp_path)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt holds a SourceOnly, not a DRM"):
        make(str(tmp_path / "other.ckpt"))
