"""Open-set metrics against reference vectors, scikit-learn, a count in plain Python, and on two ranks."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from two_ranks import one_and_both

from dafw.errors import UserError
from dafw.metrics import OS, CommonAccuracy, HScore, OpenSetMetric, UnknownAccuracy, UnknownFPR95, open_set_metrics


def samples(rows: int, classes: int, seed: int = 0, ties: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes + 1, (rows,), generator=generator)
    wrong = torch.randint(classes + 1, (rows,), generator=generator)
    prediction = torch.where(torch.rand(rows, generator=generator) < 0.6, target, wrong)
    unknown = torch.randn(rows, generator=generator) + 1.5 * (target == classes)
    if ties:
        unknown = (unknown * ties).round() / ties
    return {"prediction": prediction, "unknown": unknown, "target": target}


def scored(*batches: dict[str, Tensor], classes: int = 3) -> dict[str, float]:
    metrics = open_set_metrics(classes)
    for batch in batches:
        metrics.update(**batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def of(metric: OpenSetMetric, prediction: list[int], target: list[int]) -> float:
    metric.update(torch.tensor(prediction), torch.tensor(target))
    return float(metric.compute())


def by_hand(prediction: Tensor, target: Tensor, classes: int) -> dict[str, float]:
    pairs = list(zip(prediction.tolist(), target.tolist(), strict=True))
    recall = {}
    for label in range(classes + 1):
        rows = [p == t for p, t in pairs if t == label]
        if rows:
            recall[label] = sum(rows) / len(rows)
    known = [p == t for p, t in pairs if t < classes]
    sample, unknown = sum(known) / len(known), recall[classes]
    mean = [value for label, value in recall.items() if label < classes]
    star = sum(mean) / len(mean)
    return {
        "common_accuracy": sample,
        "mean_class_accuracy": star,
        "os_star": star,
        "os": sum(recall.values()) / len(recall),
        "unknown_accuracy": unknown,
        "h_score": 2 / (1 / sample + 1 / unknown),
        "h_score_class_mean": 2 / (1 / star + 1 / unknown),
    }


def test_reference_vectors() -> None:
    arrays = golden("memspm/hscore.npz")
    classes = int(arrays["unknown_index"])
    target, prediction = (torch.from_numpy(arrays[name]) for name in ("gt", "pred"))
    found = scored({"prediction": prediction, "target": target, "unknown": prediction.double()}, classes=classes)
    for name, key in {
        "common_accuracy": "acc_known_instance",
        "mean_class_accuracy": "acc_known_class_mean",
        "unknown_accuracy": "acc_unknown",
        "h_score": "h_instance",
        "h_score_class_mean": "h_class_mean",
        "os": "os",
        "os_star": "os_star",
    }.items():
        assert found[name] == pytest.approx(float(arrays[key]), rel=1e-7, abs=1e-9), name


@pytest.mark.parametrize("seed", range(4))
def test_counts_in_plain_python(seed: int) -> None:
    batch = samples(60, 4, seed)
    batch = {name: value[batch["target"] != seed] for name, value in batch.items()}  # one known class has no sample
    found = scored(batch, classes=4)
    for name, expected in by_hand(batch["prediction"], batch["target"], 4).items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("ties", [0, 1, 3])
@pytest.mark.parametrize("rows", [30, 400])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_detection_against_scikit_learn(ties: int, rows: int, scale: float) -> None:
    batch = samples(rows, 3, seed=rows + ties, ties=ties)
    batch["unknown"] *= scale
    found = scored(batch)
    unknown = (batch["target"] == 3).numpy()
    assert found["auroc"] == pytest.approx(roc_auc_score(unknown, batch["unknown"].numpy()), abs=1e-12)
    fpr, tpr, _ = roc_curve(unknown, batch["unknown"].numpy(), drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


@pytest.mark.parametrize(("unknown_rows", "flagged"), [(1, 1), (19, 19), (20, 19), (21, 20), (40, 38), (100, 95)])
def test_95_percent_is_the_least_number_that_is_enough(unknown_rows: int, flagged: int) -> None:
    outside = torch.arange(unknown_rows) + 0.5
    metric = UnknownFPR95(2)
    inside = torch.arange(200.0)
    metric.update(torch.cat([inside, outside]), torch.tensor([0] * 200 + [2] * unknown_rows))
    assert float(metric.compute()) == int((inside >= outside[unknown_rows - flagged]).sum()) / 200


def test_detection_at_its_ends() -> None:
    target = torch.tensor([0, 1, 2, 2])
    for scores, auroc, fpr in (([0.0, 1, 2, 3], 1, 0), ([3.0, 2, 1, 0], 0, 1), ([1.0, 1, 1, 1], 0.5, 1)):
        batch = {"unknown": torch.tensor(scores), "prediction": target, "target": target}
        found = scored(batch, classes=2)
        assert (found["auroc"], found["fpr95"]) == (auroc, fpr)
    infinite = {"unknown": torch.tensor([-math.inf, 0, 0, math.inf]), "prediction": target, "target": target}
    assert scored(infinite, classes=2)["auroc"] == 0.875


def test_h_is_0_if_either_is_and_lies_between_them() -> None:
    for average in ("sample", "class"):
        assert of(HScore(2, average), [2, 2, 2], [0, 1, 2]) == 0
        assert of(HScore(2, average), [0, 1, 1], [0, 1, 2]) == 0
        assert of(HScore(2, average), [1, 0, 1], [0, 1, 2]) == 0
        assert of(HScore(2, average), [0, 1, 2], [0, 1, 2]) == 1
        assert of(HScore(1, average), [0, 1, 0, 1], [0, 0, 1, 1]) == 0.5  # where they are equal, it is what they are
    for seed in range(20):
        found = scored(samples(40, 3, seed))
        for h, accuracy in (("h_score", "common_accuracy"), ("h_score_class_mean", "mean_class_accuracy")):
            low, high = sorted((found[accuracy], found["unknown_accuracy"]))
            assert low <= found[h] <= math.sqrt(low * high) + 1e-12 <= high + 2e-12


def test_a_known_sample_predicted_unknown_is_wrong() -> None:
    assert of(CommonAccuracy(2), [0, 2, 1, 2], [0, 0, 1, 2]) == pytest.approx(2 / 3)
    assert of(CommonAccuracy(2, "class"), [0, 2, 1, 2], [0, 0, 1, 2]) == 0.75
    assert of(OS(2), [0, 2, 1, 2], [0, 0, 1, 2]) == pytest.approx(2.5 / 3)


def test_order_and_batches_change_nothing() -> None:
    whole = samples(50, 3, ties=2)
    expected = scored(whole)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    parts = [{name: value[rows] for name, value in whole.items()} for rows in order.split(7)]
    assert scored(*parts) == expected
    assert scored(*parts[::-1]) == expected


def test_what_has_no_sample_is_nan() -> None:
    batch = samples(30, 3)
    known, unknown = batch["target"] < 3, batch["target"] == 3
    without_unknown = scored({name: value[known] for name, value in batch.items()})
    names = {"h_score", "h_score_class_mean", "unknown_accuracy", "auroc", "fpr95"}
    assert {name for name, value in without_unknown.items() if math.isnan(value)} == names
    assert without_unknown["os"] == without_unknown["os_star"]
    without_known = scored({name: value[unknown] for name, value in batch.items()})
    assert {name for name, value in without_known.items() if not math.isnan(value)} == {"os", "unknown_accuracy"}
    batch["unknown"][3] = math.nan
    assert {name for name, value in scored(batch).items() if math.isnan(value)} == {"auroc", "fpr95"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_at_all_is_nan() -> None:
    assert all(math.isnan(value) for value in scored().values())


def test_a_collection_counts_once_and_starts_again() -> None:
    metrics = open_set_metrics(3)
    metrics.update(**samples(20, 3))
    assert sorted(len(group) for group in metrics.compute_groups.values()) == [2, 7]
    metrics.update(**samples(20, 3, seed=1))
    first = metrics.compute()
    assert {k: float(v) for k, v in first.items()} == scored(samples(20, 3), samples(20, 3, seed=1))
    again = pickle.loads(pickle.dumps(metrics))
    assert again.compute() == first
    metrics.reset()
    metrics.update(**samples(25, 3, seed=2))
    assert {k: float(v) for k, v in metrics.compute().items()} == scored(samples(25, 3, seed=2))


def test_half_precision_scores_and_small_integers() -> None:
    batch = samples(50, 3)
    half = {"unknown": batch["unknown"].bfloat16(), "prediction": batch["prediction"].int(), "target": batch["target"]}
    assert scored(half) == scored({**batch, "unknown": batch["unknown"].bfloat16().double()})


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = ("_local_scalar_dense", "nonzero", "item", "equal", "bincount", "masked_select")
        assert func._schema.name not in {f"aten::{name}" for name in reads}, func
        return func(*args, **(kwargs or {}))


def test_an_update_reads_nothing_from_the_device() -> None:
    metrics = open_set_metrics(3)
    batch = samples(20, 3)
    with NoHostReads():
        for metric in metrics.values(copy_state=False):
            metric.update(**metric._filter_kwargs(**batch))


@pytest.mark.parametrize(("prediction", "target"), [(-1, 1), (3, 0), (0, 3), (0, -1)])
def test_a_label_out_of_range_is_counted_nowhere(prediction: int, target: int) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        UnknownAccuracy(2).update(torch.tensor([prediction]), torch.tensor([target]))


def test_many_classes_take_little_memory() -> None:
    metrics = open_set_metrics(10_000)
    states = [value for metric in metrics.values() for value in metric._defaults.values() if isinstance(value, Tensor)]
    assert sum(state.numel() for state in states) <= 20 * 10_001
    metrics.update(**samples(50, 10_000))
    assert float(metrics["common_accuracy"].compute()) == pytest.approx(0.6, abs=0.3)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match='unknown average "classes": did you mean "class"'):
        HScore(2, "classes")  # type: ignore[arg-type]
    for make in (HScore, UnknownFPR95):
        with pytest.raises(UserError, match="one known class or more, not 0"):
            make(0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    one, *ranks = one_and_both(Path(__file__).with_name("over_ranks.py"), tmp_path)
    assert all(not value.isnan() for value in one["in turn"].values())
    assert all(not value.isnan().any() for value in one["boxes, in turn"].values())
    for found in ranks:
        assert found.keys() == one.keys()
        for share, expected in one.items():
            assert found[share].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[share][name].double(), value.double(), rtol=0, atol=0, equal_nan=True)
