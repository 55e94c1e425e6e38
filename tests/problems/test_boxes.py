"""Detection: a problem on the modules of the network that made the outputs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dafw.data import Domain
from dafw.errors import UserError
from dafw.methods import MCC, SourceOnly
from dafw.metrics.boxes import BoxPrecision
from dafw.nn.detector import Detector
from dafw.nn.segmentation import SegmentationNetwork
from dafw.problems import BoxOutputs, Detection, Predicted, Segmentation, Shown
from dafw.testing.dense_toys import ToySegmenter, toy_boxes

Target = dict[str, Tensor]


def detector(**options: Any) -> Detector:
    torch.manual_seed(0)
    network = Detector(**{"proposals_in_training": 20, "proposals_in_test": 20, "score_threshold": 0.0, **options})
    network.set_classes(3)
    return network


def samples(count: int = 4) -> tuple[Tensor, list[Target]]:
    domain: Any = toy_boxes("a", count)
    return torch.stack(list(domain.inputs)), list(domain.labels)


class Found:
    """A network that finds what it is told to."""

    def __init__(self, found: list[Target]) -> None:
        self.found = found

    def detections(self, outputs: Any) -> list[Target]:
        return self.found

    losses = row_losses = proposals = regions = detections


def measure(found: list[Target], y: list[Target], classes: int = 3) -> dict[str, float]:
    problem = Detection().bind(Found(found))
    metrics = problem.metrics(classes)
    problem.score(metrics, None, y)  # type: ignore[arg-type]
    return problem.values(metrics, ["w", "x", "y"][:classes])


def test_the_terms_are_the_detectors_losses_bit_for_bit() -> None:
    network, (x, y) = detector(), samples()
    outputs = network(x)
    problem = Detection().bind(network)
    torch.manual_seed(3)
    terms = problem.terms(outputs, y)
    torch.manual_seed(3)
    expected = network.losses(outputs, y)
    assert tuple(terms) == network.loss_names
    assert all(torch.equal(terms[name], expected[name]) for name in network.loss_names)
    torch.manual_seed(3)
    rows = problem.row_losses(outputs, y)
    assert rows.shape == (4,)
    torch.testing.assert_close(rows.mean(), torch.stack(list(expected.values())).sum())


def test_an_evaluated_loss_depends_on_each_image_alone_and_leaves_the_random_state() -> None:
    network = detector(anchors_per_image=8, regions_per_image=8).eval()
    x, y = samples(4)
    problem = Detection().bind(network)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    total, count = problem.summed_loss(network(x), y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    parts = [problem.summed_loss(network(x[i : i + 1]), y[i : i + 1])[0] for i in (2, 0, 3, 1)]
    torch.testing.assert_close(total, torch.stack(parts).sum())
    assert count == 4


def test_a_network_for_boxes_or_masks_says_what_is_predicted() -> None:
    assert isinstance(SourceOnly(detector(), num_classes=3).problem, Detection)
    assert isinstance(SourceOnly(SegmentationNetwork(), num_classes=3).problem, Segmentation)
    with pytest.raises(UserError, match=r"MCC is a method for classification, and model\.problem is Detection"):
        MCC(detector(), num_classes=3)


def test_the_outputs_of_another_network_need_the_problem_that_is_bound_to_it() -> None:
    problem, one, other = Detection(), detector(), detector()
    with torch.no_grad():
        next(iter(other.label_head().parameters())).mul_(2)
    x, y = samples(2)
    bound = problem.bind(one)
    assert bound.network is one
    assert bound.bind(other).network is other
    assert bound.network is one, "the first binding stays"
    with pytest.raises(RuntimeError, match=r"problem\.bind\(network\) first"):
        problem.terms(one(x), y)
    with pytest.raises(UserError, match=r"ToySegmenter is no detector \(it lacks losses\): set model\.network"):
        SourceOnly(ToySegmenter(), num_classes=3, problem=Detection())
    method = SourceOnly(one, num_classes=3, problem=problem, ema_decay=0.9)
    assert method.problem.network is method.network  # type: ignore[attr-defined]
    assert method.evaluator.problem.network is method.eval_network is not method.network  # type: ignore[attr-defined]


def test_perfect_boxes_and_a_class_that_is_nowhere() -> None:
    _, y = samples(2)
    y = [{**one, "labels": torch.zeros_like(one["labels"])} for one in y]
    perfect = [{**one, "scores": torch.ones(len(one["boxes"]))} for one in y]
    found = measure(perfect, y)
    assert (found["map"], found["map_50"], found["map_75"], found["ap/w"]) == pytest.approx((1, 1, 1, 1))
    assert math.isnan(found["ap/x"])
    assert math.isnan(found["ap/y"])
    assert set(found) == {"map", "map_50", "map_75", "ap/w", "ap/x", "ap/y"}


def test_nothing_at_all_is_undefined_and_no_score_of_minus_one() -> None:
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    found = measure([empty], [{"boxes": empty["boxes"], "labels": empty["labels"]}])
    assert all(math.isnan(value) for value in found.values())
    missed = measure([empty], [{"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1])}])
    assert (missed["map"], missed["ap/x"]) == (0, 0)
    assert math.isnan(missed["ap/w"])
    one = measure([empty], [{"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([0])}], classes=1)
    assert (one["map"], one["ap"]) == (0, 0)


def test_a_box_half_beside_its_object() -> None:
    """Overlap 0.62: right at the thresholds 0.5, 0.55 and 0.6, wrong at the seven others."""
    y = [{"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([2])}]
    found = measure(
        [{"boxes": torch.tensor([[0.0, 0, 6.2, 10]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([2])}], y
    )
    assert (found["map"], found["map_50"], found["map_75"]) == pytest.approx((0.3, 1, 0))


def test_every_part_of_the_metric_is_joined_over_the_ranks() -> None:
    states = {name for name in BoxPrecision(3)._defaults if "mask" not in name}
    assert states == set(BoxPrecision._STATES)


def test_pseudo_labels_keep_what_is_likely() -> None:
    network, (x, _) = detector().eval(), samples(3)
    problem = Detection().bind(network)
    outputs = network(x)
    scores = torch.cat([one["scores"] for one in network.detections(outputs)])
    threshold = float(scores.sort().values[-2])
    labels, weights = problem.pseudo_labels(outputs, threshold)
    assert sum(len(one["boxes"]) for one in labels) == 2
    assert all(set(one) == {"boxes", "scores", "labels"} for one in labels)
    assert weights.tolist() == [float(len(one["labels"]) > 0) for one in labels]


def test_carried_boxes_are_clipped_and_those_outside_left_out() -> None:
    label = {"boxes": torch.tensor([[2.0, 1, 6, 5], [0, 0, 3, 3]]), "labels": torch.tensor([1, 2]), "name": "x"}
    turn = torch.tensor([[[0.0, -1, 8], [1, 0, 0]]])  # a quarter turn of 8 x 8 pixels
    (turned,) = Detection().carry([label], turn, (8, 8))
    assert turned["boxes"].tolist() == [[3, 2, 7, 6], [5, 0, 8, 3]]
    move = torch.tensor([[[1.0, 0, -2.5], [0, 1, 0]]])
    (moved,) = Detection().carry([label], move, (8, 8))
    assert moved["boxes"].tolist() == [[0, 1, 3.5, 5]]
    assert (moved["labels"].tolist(), moved["name"]) == ([1], "x")
    (cut,) = Detection().carry([label], torch.eye(2, 3)[None], (8, 8), torch.tensor([[4, 5]]))
    assert cut["boxes"].tolist() == [[2, 1, 5, 4], [0, 0, 3, 3]]


def test_one_file_in_cocos_format(tmp_path: Path) -> None:
    columns = {
        "boxes": [torch.tensor([[1.0, 2, 4, 8]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 1, 1], [2, 2, 3.5, 4]])],
        "scores": [torch.tensor([0.5]), torch.zeros(0), torch.tensor([0.25, 0.125])],
        "labels": [torch.tensor([1]), torch.zeros(0, dtype=torch.int64), torch.tensor([0, 1])],
    }
    path = tmp_path / "found.json"
    Detection().write_predictions([Predicted("b", ["x/1", "x/2", "x/3"], columns)], ["cat", "dog"], path)
    entries = json.loads(path.read_text())
    assert entries[0] == {
        **{"image_id": "x/1", "category_id": 1, "bbox": [1, 2, 3, 6], "score": 0.5},
        **{"domain": "b", "category": "dog"},
    }
    assert [(one["image_id"], one["bbox"]) for one in entries[1:]] == [("x/3", [0, 0, 1, 1]), ("x/3", [2, 2, 1.5, 2])]


def test_wrong_samples_are_named() -> None:
    domain: Any = toy_boxes("a", 6)
    assert Detection().wrong_samples(domain, 3) == []
    boxes = [[[4.0, 4, 4, 9]], [[-1.0, 0, 5, 5]], [[20.0, 20, 33, 30]], [[0.0, 0, 5, 5]], [[0.0, 0, 5, 5]]]
    labels: list[Any] = [{"boxes": torch.tensor(one), "labels": torch.tensor([0])} for one in boxes]
    labels[3]["labels"], labels[4]["labels"] = torch.tensor([3]), torch.tensor([0, 1])
    wrong = Domain("a", domain.inputs, [*labels, torch.tensor(2)], [f"{i}.png" for i in range(6)])
    assert Detection().wrong_samples(wrong, 3) == [
        "0.png has a box without area, [4.0, 4.0, 4.0, 9.0]",
        "1.png is 32x32 and has a box outside, [-1.0, 0.0, 5.0, 5.0]",
        "2.png is 32x32 and has a box outside, [20.0, 20.0, 33.0, 30.0]",
        "3.png has a box of class 3, but there are 3 classes",
        "4.png has boxes (1, 4) and labels (2,)",
        "5.png has a label without boxes and labels",
    ]


def test_pictures_show_likely_boxes() -> None:
    x, y = samples(2)
    found = {
        "boxes": [torch.tensor([[1.0, 1, 9, 9], [2, 2, 5, 5]]), torch.zeros(0, 4)],
        "scores": [torch.tensor([0.9, 0.4]), torch.zeros(0)],
        "labels": [torch.tensor([2, 1]), torch.zeros(0, dtype=torch.int64)],
    }
    outputs = BoxOutputs({}, {}, [], (32, 32))
    shown = [Shown("a", False, x, outputs, y, found), Shown("b", True, x, outputs, None, found)]
    (figure,) = Detection().pictures(shown, ["w", "x", "y"]).values()
    assert [len(axis.patches) for axis in figure.axes] == [1, 1, 2, 0, 0, 1, 0, 0]


def test_what_detection_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="Detection knows no unknown classes"):
        Detection().metrics(3, rejects=True)
