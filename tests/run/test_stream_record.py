"""What a result says of a stream: each number by hand, and the numbers of a run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import measure

from dafw.data import Domain
from dafw.data.stream_plan import plan_of
from dafw.data.target_stream import TargetStream
from dafw.losses.entropy import entropy
from dafw.methods import Losses, SourceOnly, TestTimeMethod
from dafw.run.stream_record import bins, errors, means, segments, served_rows, stream_result, worst_window
from dafw.run.stream_result import StreamResult
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer

NAN = float("nan")


class Choosy(TestTimeMethod):
    """Learns from the first row of every second batch alone."""

    default_statistics = "batch"

    def adapt(self, outputs: Any, batch: Any) -> Losses:
        rows = torch.arange(len(batch)) < (self.step % 2 == 0)
        return {"entropy": (entropy(outputs.logits) * self.used(rows)).sum()}


def test_errors_are_of_samples_with_a_label_and_a_prediction() -> None:
    found = errors(torch.tensor([0, 1, 2, -1]), torch.tensor([0, 2, -1, 1]))
    np.testing.assert_array_equal(found, [0, 1, NAN, NAN])


def test_bins_and_the_worst_window() -> None:
    wrong = np.asarray([0, 0, 1, NAN, 1, 1, 0, 0.0])
    assert bins(wrong, 4) == (0.0, 1.0, 1.0, 0.0)
    assert len(bins(wrong)) == 8
    assert worst_window(wrong, 3) == {"error": 1.0, "position": 2.0}
    assert worst_window(wrong, 100) == {"error": pytest.approx(3 / 7), "position": 0.0}
    assert worst_window(np.asarray([NAN]), 3) == {}


def test_the_mean_is_of_domains_and_never_pooled() -> None:
    large, small = {"error": 0.1, "samples": 1000.0}, {"error": 0.5, "samples": 10.0}
    assert means([large, small])["error"] == pytest.approx(0.3)
    assert means([]) == {}


def test_errors_around_each_shift() -> None:
    domains = [Domain(name, list(range(6)), None) for name in "ab"]
    plan = plan_of(TargetStream(), "ab", domains, seed=0, batch_size=2)
    wrong = np.asarray([0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0.0])
    first, second = segments(plan, wrong, 4)
    assert first == {"domain": "a", "position": 0, "after": 0.0}
    assert second == {"domain": "b", "position": 6, "before": 0.5, "after": 0.25}


def test_the_result_of_a_stream(tmp_path: Path) -> None:
    source, trainer = case(SourceOnly).train(tmp_path, epochs=4)
    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    data = ToyData("a", ["b", "c"], batch_size=4, images_per_domain=10, stream=TargetStream(rounds=2))
    arguments: dict[str, Any] = {"num_classes": 3, "lr": 0.1, "checkpoint": str(tmp_path / "step=1.ckpt"), "reset": 4}
    method = Choosy(toy_network(), **arguments)
    toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data)
    found = measure(toy_trainer(tmp_path), method, data)
    result = stream_result(method, data, 2.0, 1)
    assert result is not None
    assert result.samples == 40
    assert list(result.domains) == ["b", "c"]
    for name, scores in result.domains.items():
        assert scores["error"] == pytest.approx(1 - found[f"test/{name}/accuracy"])
        assert scores["start_error"] == pytest.approx(1 - found[f"test/{name}/accuracy_without_adaptation"])
        assert scores["samples"] == 20
        assert 0 <= scores["ece"] <= 1
        assert scores["nll"] > 0
    assert result.mean["error"] == pytest.approx(np.mean([each["error"] for each in result.domains.values()]))
    assert np.mean(result.bins["error"]) == pytest.approx(result.mean["error"])
    assert [(one["domain"], one["position"]) for one in result.segments] == [("b", 0), ("c", 10), ("b", 20), ("c", 30)]
    assert result.used == {"samples": 6 / 40, "steps": 6 / 12}
    assert result.resets == 2
    assert result.source["samples"] == 21
    assert 0 <= result.source["final"] <= 1
    accuracy = measure(toy_trainer(tmp_path), source, ToyData("a", "b", batch_size=4))["test/a/accuracy"]
    assert result.source["start"] == pytest.approx(accuracy)
    assert result.speed["samples_per_second"] == 20
    assert result.speed["start_samples_per_second"] > 0
    assert result.protocol == {
        "stream": "continual, 2 rounds",
        "stream_order": "random",
        "ordered_by_labels": False,
        "order_seed": 0,
        "batch_size": 4,
        "images_per_domain": 10,
        "reset": "every 4 steps",
        "knows_shifts": False,
        "statistics": "batch",
        "learns": "network",
        "normalisation": "mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        "source_use": "nothing",
    }
    header, *rows = served_rows(method, data)
    assert len(rows) == 40
    first = dict(zip(header, rows[0], strict=True))
    plan = data.stream_plan
    assert (first["position"], first["domain"], first["step"]) == (0, "b", 0)
    assert first["sample"] == f"b/{2 * plan.rows.index[0]}"
    assert first["label"] == data.class_names[plan.rows.index[0] % 3]
    assert [row[header.index("used")] for row in rows] == method.served.used.long().tolist()
    wrong = [row[header.index("predicted")] != row[header.index("label")] for row in rows]
    assert np.mean(wrong) == pytest.approx(result.mean["error"])
    assert all(0.33 < float(str(row[header.index("confidence")])) <= 1 for row in rows)
    assert StreamResult.parse(json.loads(json.dumps(asdict(result)))) == result
    assert stream_result(method, ToyData("a", ["c", "b"], batch_size=4), 0, 1) is None
    assert stream_result(source, data, 0, 1) is None


def test_a_stream_without_labels_and_without_a_source(tmp_path: Path) -> None:
    class Unlabelled(ToyData):
        def load(self, name: str, split: Any) -> Domain:
            return super().load(name, split).unlabelled() if name == "b" else super().load(name, split)

    _, trainer = case(SourceOnly).train(tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    data = Unlabelled("a", "b", batch_size=8)
    data.forbidden = [("a", "test")]
    method = Choosy(toy_network(), num_classes=3, checkpoint=str(tmp_path / "step=1.ckpt"))
    toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data)
    toy_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    result = stream_result(method, data, 0, 1)
    assert result is not None
    assert (result.domains, result.mean, result.worst, result.source) == ({}, {}, {}, {})
    assert result.used["samples"] == pytest.approx(2 / 21)
    assert "samples_per_second" not in result.speed
