"""Average precision of boxes against COCO's code and hand-computed cases, GWHD's accuracy, kinds of errors."""

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from dafw.errors import UserError
from dafw.metrics.box_matching import ERRORS, Image, accuracy, average_precision, errors, match, overlaps, voc_precision
from dafw.metrics.boxes import BoxPrecision, box_metrics

Pair = tuple[dict[str, Tensor], dict[str, Tensor]]


def grid(images: int = 30, classes: int = 3, seed: int = 0, side: float = 20.0) -> list[Pair]:
    """Labelled boxes that do not overlap, each with up to two detections near it, some of another class."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(images):
        cells = torch.randperm(16, generator=g)[: int(torch.randint(0, 6, (), generator=g))]
        corner = torch.stack([cells % 4, cells // 4], 1) * 100.0
        truth = torch.cat([corner, corner + side + 30 * torch.rand(len(cells), 2, generator=g)], 1)
        labels = torch.randint(classes, (len(cells),), generator=g)
        near = truth.repeat(2, 1) + 6 * torch.randn(2 * len(cells), 4, generator=g)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        wrong = torch.rand(len(near), generator=g) < 0.2
        detected = torch.where(wrong, torch.randint(classes, (len(near),), generator=g), labels.repeat(2))
        scores = torch.rand(len(near), generator=g)
        found.append(
            ({"boxes": near, "scores": scores, "labels": detected}, {"boxes": truth, "labels": labels}),
        )
    return found


def computed(pairs: list[Pair], classes: int = 3, form: Any = "coco") -> dict[str, Any]:
    metric = BoxPrecision(classes, form)
    for one in pairs:
        metric.update([one[0]], [one[1]])
    return {name: value.tolist() for name, value in metric.compute().items()}


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def image(found: list[tuple[float, ...]], truth: list[tuple[float, ...]]) -> Image:
    """Detections (x1, y1, x2, y2, score, class) and labels (x1, y1, x2, y2, class, crowd)."""
    one, other = np.array(found).reshape(-1, 6), np.array(truth).reshape(-1, 6)
    return Image(one[:, :4], one[:, 4], one[:, 5], other[:, :4], other[:, 4], other[:, 5] > 0)


def test_the_names_of_coco_stand_for_torchmetrics_numbers_with_pairs_of_all_sizes() -> None:
    pairs = [*grid(20), *grid(20, seed=1, side=75), *grid(20, seed=2, side=3)]
    theirs = MeanAveragePrecision(class_metrics=True, backend="faster_coco_eval")
    theirs.update([one for one, _ in pairs], [one for _, one in pairs])
    expected, found = theirs.compute(), computed(pairs)
    for ours, name in {"ap": "map", "ap50": "map_50", "ap75": "map_75", "recall100": "mar_100"}.items():
        assert found[ours] == pytest.approx(float(expected[name]), abs=1e-6)
    for size in ("small", "medium", "large"):
        assert found[f"ap_{size}"] == pytest.approx(float(expected[f"map_{size}"]), abs=1e-6)
    assert found["ap_by_class"] == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)
    assert np.mean(found["ap50_by_class"]) == pytest.approx(found["ap50"])
    assert 0 < found["ap"] < found["ap50"] < 1


def test_what_is_undefined_is_nan() -> None:
    empty = {"boxes": boxes(), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    nothing = {"boxes": boxes(), "labels": torch.zeros(0, dtype=torch.int64)}
    for pairs in ([], [(empty, nothing)]):
        found = computed(pairs, form="voc")
        known = found.pop("detection_accuracy"), found.pop("images_without_box")
        assert all(np.isnan(value).all() for value in found.values())
        assert known == (1, 1) if pairs else np.isnan(known).all()
    small = {"boxes": boxes((0, 0, 9, 9)), "labels": torch.tensor([1])}
    found = computed([(empty, small)], form="voc07")
    assert (found["ap"], found["ap50"], found["ap_small"], found["ap50_voc07"], found["recall100"]) == (0, 0, 0, 0, 0)
    assert np.isnan([found["ap_medium"], found["ap_large"], *found["ap_by_class"][::2]]).all()
    assert np.isnan(found["ap50_voc07_by_class"]).tolist() == [True, False, True]
    assert -1 not in np.concatenate([np.ravel(value) for value in found.values()])


def test_neither_the_order_of_images_nor_equal_scores_change_a_value() -> None:
    pairs = [({**one, "scores": (one["scores"] * 3).round() / 3}, label) for one, label in grid()]
    first = computed(pairs, form="voc")
    for seed in range(3):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
        assert str(computed([pairs[i] for i in order], form="voc")) == str(first)  # where nan equals nan


def test_a_crowd_is_neither_missed_nor_wrong() -> None:
    found = {
        "boxes": boxes((0, 0, 10, 10), (50, 50, 60, 60), (62, 50, 72, 60)),
        "scores": torch.tensor([0.7, 0.9, 0.8]),
        "labels": torch.tensor([0, 0, 0]),
    }
    truth = {"boxes": boxes((0, 0, 10, 10), (48, 48, 80, 80)), "labels": torch.tensor([0, 0])}
    crowded = {**truth, "crowd": torch.tensor([False, True])}
    assert computed([(found, crowded)], 1)["ap50"] == pytest.approx(1)
    assert computed([(found, truth)], 1)["ap50"] < 0.5
    # VOC leaves out a detection that fits the region, and has no rule for one of its parts.
    fits = {**found, "boxes": boxes((0, 0, 10, 10), (48, 48, 80, 79), (48, 49, 80, 80))}
    one = computed([(fits, crowded)], 1, "voc")
    assert (one["ap50_voc"], one["detection_accuracy"]) == (1, 1)
    assert [one[name] for name in ERRORS] == [0] * 5


def test_an_area_that_is_given_decides_the_size() -> None:
    found = {"boxes": boxes((0, 0, 40, 40)), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    truth = {"boxes": boxes((0, 0, 40, 40)), "labels": torch.tensor([0])}
    assert computed([(found, truth)], 1)["ap_medium"] == pytest.approx(1)
    given = computed([(found, {**truth, "area": torch.tensor([500.0])})], 1)
    assert given["ap_small"] == pytest.approx(1)
    assert math.isnan(given["ap_medium"])


def test_vocs_precisions_of_a_case_computed_by_hand() -> None:
    """Five objects; detections are right, wrong, right, wrong, right: precisions 1, 2/3, 3/5 at recalls .2, .4, .6."""
    right = np.array([1, 0, 1, 0, 1])
    recall, precision = right.cumsum() / 5, right.cumsum() / np.arange(1, 6)
    assert average_precision(recall, precision, "voc") == pytest.approx(0.2 * (1 + 2 / 3 + 3 / 5))
    # recalls 0, .1 and .2; .3 and .4; .5 and .6; none beyond
    assert average_precision(recall, precision, "voc07") == pytest.approx((3 * 1 + 2 * 2 / 3 + 2 * 3 / 5) / 11)
    assert [average_precision(np.zeros(0), np.zeros(0), form) for form in ("voc", "voc07")] == [0, 0]
    three_of_ten = np.arange(1, 4) / 10  # 0.3 is reached, although 3 * 0.1 is more than 0.3 for a computer
    assert average_precision(three_of_ten, np.ones(3), "voc07") == pytest.approx(4 / 11)


def test_vocs_matching_of_a_case_computed_by_hand() -> None:
    """The best detection of a box is right, the second wrong; an overlap of exactly 0.5 suffices; each class alone."""
    one = image(
        [(0, 0, 10, 5, 0.6, 0), (0, 0, 10, 9, 0.9, 0), (0, 0, 10, 4.9, 0.95, 0), (20, 0, 30, 5, 0.5, 0)],
        [(0, 0, 10, 10, 0, 0), (20, 0, 30, 10, 0, 0), (20, 0, 30, 10, 1, 0)],
    )
    found = match(one)
    assert found.order.tolist() == [2, 1, 0, 3]
    assert found.right.tolist() == [False, True, False, True]
    # after each: recalls 0, .5, .5, 1 and precisions 0, 1/2, 1/3, 1/2
    assert voc_precision([one], [found], 3, "voc")[:2].tolist() == [0.5, 0]
    assert np.isnan(voc_precision([one], [found], 3, "voc")[2])


@pytest.mark.parametrize("seed", range(3))
def test_vocs_precisions_are_cocos_at_other_recalls(seed: int) -> None:
    """Labelled boxes that do not overlap, where both match alike."""
    pairs = grid(seed=seed)
    counts = {int((torch.cat([one["labels"] for _, one in pairs]) == label).sum()) for label in range(3)}

    def coco(recalls: list[float]) -> Tensor:
        metric = MeanAveragePrecision(
            iou_thresholds=[0.5], rec_thresholds=recalls, class_metrics=True, backend="faster_coco_eval"
        )
        metric.update([one for one, _ in pairs], [one for _, one in pairs])
        return torch.as_tensor(metric.compute()["map_per_class"])

    eleven = computed(pairs, form="voc07")
    assert eleven["ap50_voc07_by_class"] == pytest.approx(coco([i / 10 for i in range(11)]).tolist(), abs=1e-6)
    assert eleven["ap50_voc07"] == pytest.approx(np.mean(eleven["ap50_voc07_by_class"]))
    area = computed(pairs, form="voc")["ap50_voc_by_class"]
    steps = math.lcm(*counts)  # between two recalls that any class can reach, the curve is flat
    assert area == pytest.approx(coco([(i + 0.5) / steps for i in range(steps)]).tolist(), abs=1e-6)


def test_overlaps() -> None:
    one, other = np.array([[0.0, 0, 4, 4], [0, 0, 0, 0]]), np.array([[2.0, 2, 6, 6], [4, 0, 8, 4], [0, 0, 4, 4]])
    assert overlaps(one, other).tolist() == [[4 / 28, 0, 1], [0, 0, 0]]


def test_gwhds_accuracy_is_that_of_the_benchmarks_code() -> None:
    arrays = golden("dp_gwhd_metric/detection_accuracy.npz")
    cases = {name.partition("__")[0] for name in arrays}
    for case in cases:
        found, truth = arrays[f"{case}__pred"].reshape(-1, 4), arrays[f"{case}__gt"].reshape(-1, 4)
        zeros = [np.zeros(len(each)) for each in (found, truth)]
        one = Image(found, arrays[f"{case}__score"], zeros[0], truth, zeros[1], zeros[1] > 0)
        assert accuracy(one, match(one)) == pytest.approx(arrays[f"{case}__acc"].item(), abs=1e-6), case
    pairs = [pair(arrays, case) for case in sorted(cases)]
    expected = np.mean([arrays[f"{case}__acc"] for case in cases])
    assert computed(pairs, 1)["detection_accuracy"] == pytest.approx(expected, abs=1e-6)


def pair(arrays: dict[str, NDArray[Any]], case: str) -> Pair:
    found, truth = (torch.from_numpy(arrays[f"{case}__{name}"]).reshape(-1, 4) for name in ("pred", "gt"))
    labels = [torch.zeros(len(each), dtype=torch.int64) for each in (found, truth)]
    scores = torch.from_numpy(arrays[f"{case}__score"])
    return {"boxes": found, "scores": scores, "labels": labels[0]}, {"boxes": truth, "labels": labels[1]}


def test_each_error_has_one_kind() -> None:
    truth = [(0, 0, 10, 10, 0, 0), (20, 0, 30, 10, 0, 0), (40, 0, 50, 10, 1, 0), (60, 0, 70, 10, 1, 0)]
    found = [
        (0, 0, 10, 10, 0.9, 0),  # right
        (0, 0, 10, 9, 0.8, 0),  # a duplicate
        (20, 0, 30, 10, 0.9, 1),  # of the wrong class
        (40, 0, 50, 3, 0.9, 1),  # loose
        (80, 0, 90, 10, 0.9, 1),  # background
        (60, 0, 70, 10, 0.5, 1),  # too unlikely to count: its box is missed
    ]
    one = image(found, truth)
    assert dict(zip(ERRORS, errors(one, match(one)), strict=True)) == dict.fromkeys(ERRORS, 1)
    none = image([], truth)
    assert errors(none, match(none)).tolist() == [4, 0, 0, 0, 0]
    empty = image(found, [])
    assert errors(empty, match(empty)).tolist() == [0, 0, 0, 5, 0]


def test_errors_are_shares_of_the_labelled_boxes() -> None:
    found = {"boxes": boxes((0, 0, 10, 10)), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    truth = {"boxes": boxes((0, 0, 10, 10), (50, 50, 60, 60)), "labels": torch.tensor([0, 0])}
    assert computed([(found, truth)], 1)["missed"] == 0.5


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("dafw.metrics.boxes.find_spec", lambda name: None if name == "faster_coco_eval" else find(name))
    with pytest.raises(UserError, match=r'needs the package faster-coco-eval: pip install "dafw\[detection\]"$'):
        box_metrics(3)
