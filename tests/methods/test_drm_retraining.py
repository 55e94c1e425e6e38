"""DRM in a test: what it learns of the test stream, what it leaves alone, and where it refuses to."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import measure
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import DRM
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import ToyData, toy_trainer

# ---- retraining in a test


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a model that was trained a little."""
    folder = tmp_path_factory.mktemp("drm")
    _, trainer = case(DRM, ema_decay=0.5).train(folder)
    trainer.save_checkpoint(folder / "trained.ckpt")
    return str(folder / "trained.ckpt")


RETRAINED: dict[str, Any] = {"retrain_confidence": 0.0, "retrain_lr": 20.0}


def load_and_test(
    checkpoint: str, folder: Path, data: ToyData | None = None, **changes: Any
) -> tuple[DRM, dict[str, float]]:
    method = DRM.load(checkpoint, **changes)
    trainer = toy_trainer(folder, inference_mode=False)
    data = data or ToyData(["a", "c"], "b", eval_batch_size=4)
    return method, measure(trainer, method, data)


@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_one_test_gives_both_numbers(retrain: str, checkpoint: str, tmp_path: Path) -> None:
    method, plain = load_and_test(checkpoint, tmp_path)
    assert not method.transductive_reason
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method, found = load_and_test(checkpoint, tmp_path, retrain=retrain, retrain_labels="shared", **RETRAINED)
    assert "retrained" in method.transductive_reason
    assert not differences(method.state_dict(), before), "the trained weights were touched"
    assert method.stream is None
    assert all(parameter.grad is None for parameter in method.parameters())
    for name, value in plain.items():
        assert found[f"{name}_without_retraining"] == value
    assert set(found) == {*plain, *(f"{name}_without_retraining" for name in plain)}
    assert found != found | plain, "retraining changed no prediction"


@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_each_stream_starts_from_the_trained_weights(retrain: str, checkpoint: str, tmp_path: Path) -> None:
    changes = {"retrain": retrain, "retrain_labels": "own", **RETRAINED}
    _, both = load_and_test(checkpoint, tmp_path, ToyData(["a", "c"], ["b"], eval_batch_size=4), **changes)
    _, alone = load_and_test(checkpoint, tmp_path, ToyData("c", "b", eval_batch_size=4), **changes)
    assert alone == {name: both[name] for name in alone}
    assert any("test/c" in name for name in alone)


@pytest.mark.parametrize("retrain", ["heads", "network"])
@pytest.mark.parametrize("labels", ["own", "shared", "uniform", "mixture"])
def test_what_a_step_moves(retrain: str, labels: str, checkpoint: str) -> None:
    method = DRM.load(checkpoint, retrain=retrain, retrain_labels=labels, **RETRAINED)
    rows = toy_rows()
    plain = method(rows.x).logits
    stream = method.stream = method.start_stream()
    start = weights(stream)
    with torch.no_grad():
        served = method.evaluate(rows, source=False)
        later = method.evaluate(rows, source=False)
    torch.testing.assert_close(served.logits, plain, msg="it was not served before the step")
    assert not torch.allclose(later.logits, plain)
    moved = differences(weights(stream), start)
    assert {name for name in start if name.startswith("heads")} <= set(moved)
    features = {name for name in moved if name.startswith("network") and "head" not in name}
    assert bool(features) == (retrain == "network")
    assert not any("running" in name for name in features)


def toy_rows() -> Batch:
    domain = ToyData("a", "b").load("b", "test")
    none = torch.zeros(9, dtype=torch.int64)
    return Batch(torch.stack([domain.inputs[i] for i in range(9)]), torch.empty(0), none, none, 0)


def weights(stream: Any) -> dict[str, Tensor]:
    found = {f"network.{name}": value.clone() for name, value in stream.network.state_dict().items()}
    for position, head in enumerate(stream.heads):
        found |= {f"heads.{position}.{name}": value.clone() for name, value in head.state_dict().items()}
    return found


@pytest.mark.parametrize("retrain", ["heads", "network"])
def test_above_one_no_confidence_is_enough(retrain: str, checkpoint: str) -> None:
    method = DRM.load(checkpoint, retrain=retrain, retrain_confidence=1.1)
    stream = method.stream = method.start_stream()
    start = weights(stream)
    with torch.no_grad():
        method.evaluate(toy_rows(), source=False)
    assert not differences(weights(stream), start)


def test_a_head_without_confident_rows_keeps_still(checkpoint: str) -> None:
    method = DRM.load(checkpoint, retrain="heads", retrain_labels="own", retrain_confidence=0.5)
    stream = method.stream = method.start_stream()
    with torch.no_grad():
        for number, head in enumerate(stream.heads):
            scale = 5.0 if number == 0 else 1e-3
            for parameter in head.parameters():
                parameter.mul_(scale)
    start = weights(stream)
    with torch.no_grad():
        method.evaluate(toy_rows(), source=False)
    assert {name.split(".")[1] for name in differences(weights(stream), start)} == {"0"}


def test_of_several_steps_the_paper_serves_before_the_first_and_the_authors_before_the_last(checkpoint: str) -> None:
    options = {"retrain": "heads", "retrain_labels": "shared", "gamma": math.inf, **RETRAINED}
    first, last = (DRM.load(checkpoint, retrain_steps=2, mode=mode, **options) for mode in ("paper", "authors"))
    one = DRM.load(checkpoint, retrain_steps=1, **options)
    rows = toy_rows()
    found = []
    for method in (first, last, one):
        method.stream = method.start_stream()
        with torch.no_grad():
            found.append(method.evaluate(rows, source=False).logits)
    with torch.no_grad():
        after_one = one.evaluate(rows, source=False).logits
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[1], after_one)
    assert not torch.allclose(found[0], found[1])


def test_validations_retrain_nothing(tmp_path: Path) -> None:
    plain, _ = case(DRM).train(tmp_path)
    retrained, _ = case(DRM, retrain="network", **RETRAINED).train(tmp_path)
    one, other = (
        json.loads(json.dumps(m.history), parse_float=lambda t: round(float(t), 5)) for m in (plain, retrained)
    )
    assert one == other
    assert not differences(plain.state_dict(), retrained.state_dict())


def test_it_works_in_half_precision(checkpoint: str, tmp_path: Path) -> None:
    method = DRM.load(checkpoint, retrain="network", retrain_steps=2, **RETRAINED)
    trainer = toy_trainer(tmp_path, inference_mode=False, precision="bf16-mixed")
    found = measure(trainer, method, ToyData("a", "b", eval_batch_size=4))
    assert all(0 <= value <= 1 for value in found.values())


def test_a_prediction_is_of_the_same_stream(checkpoint: str, tmp_path: Path) -> None:
    data = ToyData(["a", "c"], "b", eval_batch_size=4)
    method, found = load_and_test(checkpoint, tmp_path, data, retrain="heads", retrain_labels="shared", **RETRAINED)
    batches: Any = toy_trainer(tmp_path, inference_mode=False).predict(method, datamodule=data)
    predicted = torch.cat([batch["prediction"] for batch in batches])
    index = torch.cat([batch["index"] for batch in batches])
    right = (predicted == torch.as_tensor(data.load("b", "test").labels)[index]).float().mean()
    assert float(right) == pytest.approx(found["test/b/accuracy"])


def test_a_stream_keeps_to_the_norm_of_evaluation(checkpoint: str) -> None:
    options = {"retrain": "network", "test_statistics": "batch", **RETRAINED}
    by_batch, plain = DRM.load(checkpoint, **options), DRM.load(checkpoint, test_statistics="batch")
    assert by_batch.transductive_reason.startswith(f"{plain.transductive_reason}; ")
    by_batch.stream = by_batch.start_stream()
    with torch.no_grad():
        torch.testing.assert_close(by_batch.evaluate(toy_rows(), False).logits, plain(toy_rows().x).logits)
        assert not torch.allclose(plain(toy_rows().x).logits, DRM.load(checkpoint)(toy_rows().x).logits)


# ---- what is refused


@pytest.mark.parametrize("what", ["test", "predict"])
def test_a_trainer_without_gradients(what: str, checkpoint: str, tmp_path: Path) -> None:
    method = DRM.load(checkpoint, retrain="heads")
    with pytest.raises(UserError, match="inference_mode=False"):
        getattr(toy_trainer(tmp_path), what)(method, datamodule=ToyData("a", "b"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"world_size": 2}, "one process"),
        ({"precision": "16-mixed"}, "unscaled gradients"),
    ],
)
def test_where_it_cannot_retrain(options: dict[str, Any], said: str) -> None:
    method = case(DRM).make(retrain="heads")
    method._trainer = SimpleNamespace(**{"world_size": 1, "precision": "32-true", **options})  # type: ignore[assignment]
    with pytest.raises(UserError, match=said):
        method.setup("fit")
    method.setup("validate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weight": 1.0}, "weight"),
        ({"gamma": -1.0}, "gamma"),
        ({"retrain_steps": 0}, "retrain_steps"),
        ({"retrain_lr": 0.0}, "retrain_lr"),
        ({"retrain": "head"}, "retrain"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        case(DRM).make(**arguments)
