"""Detection: a problem on the modules of the network that made the outputs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.data import Domain
from dafw.errors import UserError
from dafw.methods import MCC, SourceOnly
from dafw.metrics.box_matching import ERRORS
from dafw.metrics.boxes import NAMES
from dafw.nn.detector import Detector
from dafw.nn.segmentation import SegmentationNetwork
from dafw.plots import Boxes, box_rows, kept_boxes
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
    assert (found["ap"], found["ap50"], found["ap75"], found["ap/w"], found["ap50/w"]) == pytest.approx((1,) * 5)
    assert math.isnan(found["ap/x"])
    assert math.isnan(found["ap/y"])
    by_class = {f"{name}/{label}" for name in ("ap", "ap50") for label in "wxy"}
    assert set(found) == {*NAMES, "detection_accuracy", "images_without_box", *by_class, *ERRORS}
    assert (found["ap_small"], math.isnan(found["ap_large"])) == (pytest.approx(1), True)


def test_nothing_at_all_is_undefined_and_no_score_of_minus_one() -> None:
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    found = measure([empty], [{"boxes": empty["boxes"], "labels": empty["labels"]}])
    assert (found.pop("detection_accuracy"), found.pop("images_without_box")) == (1, 1)
    assert all(math.isnan(value) for value in found.values())
    missed = measure([empty], [{"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1])}])
    assert (missed["ap"], missed["ap/x"], missed["missed"]) == (0, 0, 1)
    assert math.isnan(missed["ap/w"])
    one = measure([empty], [{"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([0])}], classes=1)
    assert (one["ap"], one["ap/w"]) == (0, 0)


def test_a_box_half_beside_its_object() -> None:
    """Overlap 0.62: right at the thresholds 0.5, 0.55 and 0.6, wrong at the seven others."""
    y = [{"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([2])}]
    found = measure(
        [{"boxes": torch.tensor([[0.0, 0, 6.2, 10]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([2])}], y
    )
    assert (found["ap"], found["ap50"], found["ap75"]) == pytest.approx((0.3, 1, 0))


@pytest.mark.parametrize(("ap", "name"), [("coco", "ap50"), ("voc07", "ap50_voc07"), ("voc", "ap50_voc")])
def test_the_average_precision_that_tables_print_is_an_option(ap: Any, name: str) -> None:
    problem = Detection(ap=ap)
    assert problem.primary == name
    y = [{"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([0])}]
    bound = problem.bind(Found([{**y[0], "scores": torch.ones(1)}]))
    assert bound.primary == name
    metrics = bound.metrics(1)
    bound.score(metrics, None, y)  # type: ignore[arg-type]
    values = bound.values(metrics, ["w"])
    assert (values[name], values[f"{name}/w"]) == pytest.approx((1, 1))
    assert ("ap50_voc" in values) == (ap == "voc")
    with pytest.raises(UserError, match='unknown ap "voc7": did you mean "voc07"'):
        Detection(ap="voc7")  # type: ignore[arg-type]


def test_evidence_is_what_likely_detections_say() -> None:
    network, (x, y) = detector().eval(), samples(3)
    outputs = network(x)
    every = network.detections(outputs)
    scores = torch.cat([one["scores"] for one in every])
    threshold = float(scores.sort().values[-4])  # three are higher
    problem = Detection(evidence_score=threshold).bind(network)
    features, logits, image = problem.evidence(outputs)
    kept = [
        (row, float(score), int(label))
        for row, one in enumerate(every)
        for score, label in zip(one["scores"], one["labels"], strict=True)
        if score > threshold
    ]
    assert (len(features), tuple(logits.shape), image.tolist()) == (3, (3, 4), [row for row, _, _ in kept])
    for share, (_, score, label) in zip(logits.softmax(1), kept, strict=True):
        assert share[0] == pytest.approx(1 - score, abs=1e-6)
        assert share[1 + label] == pytest.approx(score, abs=1e-6)
    chosen = [one["boxes"][one["scores"] > threshold] for one in every]
    assert torch.equal(features, network.regions(outputs, chosen).features)
    row, _, label = kept[0]
    y[row] = {"boxes": chosen[row][:1], "labels": torch.tensor([2]), "crowd": torch.tensor([False])}
    assert problem.evidence_labels(outputs, y)[image == row][0] == 3
    y[row]["crowd"] = torch.tensor([True])
    assert problem.evidence_labels(outputs, y)[image == row][0] == 0
    nothing = Detection(evidence_score=1.0).bind(network).evidence(outputs)
    assert [tuple(part.shape) for part in nothing] == [(0, features.shape[1]), (0, 4), (0,)]


def test_a_crowd_has_no_part_in_an_evaluated_loss() -> None:
    network, (x, y) = detector().eval(), samples(2)
    problem = Detection().bind(network)
    more = {"boxes": torch.tensor([[1.0, 1, 8, 9]]), "labels": torch.tensor([1])}
    crowd = [{name: torch.cat([part, more[name]]) for name, part in one.items()} for one in y]
    marked = [{**one, "crowd": torch.arange(len(one["labels"])) == len(one["labels"]) - 1} for one in crowd]
    outputs = network(x)
    assert torch.equal(problem.summed_loss(outputs, marked)[0], problem.summed_loss(outputs, y)[0])
    assert not torch.equal(problem.summed_loss(outputs, crowd)[0], problem.summed_loss(outputs, y)[0])


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


def columns() -> dict[str, list[Any]]:
    return {
        "boxes": [torch.tensor([[1.0, 2, 4, 8]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 1, 1], [2, 2, 3.5, 4]])],
        "scores": [torch.tensor([0.5]), torch.zeros(0), torch.tensor([0.25, 0.125])],
        "labels": [torch.tensor([1]), torch.zeros(0, dtype=torch.int64), torch.tensor([0, 1])],
        "size": [[8, 8], [8, 8], [8, 4]],
    }


def test_one_file_in_cocos_format(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    Detection().write_predictions([Predicted("b", ["x/1", "x/2", "x/3"], columns())], ["cat", "dog"], path)
    entries = json.loads(path.read_text())
    assert entries[0] == {
        **{"image_id": "x/1", "category_id": 1, "bbox": [1, 2, 3, 6], "score": 0.5},
        **{"domain": "b", "category": "dog"},
    }
    assert [(one["image_id"], one["bbox"]) for one in entries[1:]] == [("x/3", [0, 0, 1, 1]), ("x/3", [2, 2, 1.5, 2])]
    assert [each.name for each in tmp_path.iterdir()] == ["found.json"]


def test_predicted_boxes_are_in_pixels_of_the_files(tmp_path: Path) -> None:
    """The images were scaled from files of these heights and widths; one file is not known."""
    found = Predicted("b", ["1", "2", "3"], columns(), [(16, 24), (8, 8), None])
    Detection().write_predictions([found], ["cat", "dog"], tmp_path / "found.json")
    boxes = [one["bbox"] for one in json.loads((tmp_path / "found.json").read_text())]
    assert boxes == [[3, 4, 9, 12], [0, 0, 1, 1], [2, 2, 1.5, 2]]


def test_several_targets_have_a_file_each(tmp_path: Path) -> None:
    found = [Predicted(name, ["1", "2", "3"], columns()) for name in ("b/c", "d")]
    Detection().write_predictions(found, ["cat", "dog"], tmp_path / "found.json")
    read = {each.name: json.loads(each.read_text()) for each in tmp_path.iterdir()}
    assert sorted(read) == ["found-b_c.json", "found-d.json", "found.json"]
    assert read["found.json"] == read["found-b_c.json"] + read["found-d.json"]
    assert {entry["domain"] for entry in read["found-d.json"]} == {"d"}


def test_predictions_say_how_large_the_network_saw_an_image() -> None:
    network, (x, _) = detector().eval(), samples(2)
    problem = Detection().bind(network)
    assert problem.predictions(network(x))["size"] == [[32, 32]] * 2
    assert problem.predictions(network(x, torch.tensor([[20, 32], [32, 30]])))["size"] == [[20, 32], [32, 30]]
    assert problem.predictions(network(x[..., :30, :27]))["size"] == [[30, 27]] * 2


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


def shown() -> list[Shown]:
    x, y = samples(2)
    found = {
        "boxes": [torch.tensor([[1.0, 1, 9, 9], [2, 2, 5, 5]]), torch.zeros(0, 4)],
        "scores": [torch.tensor([0.9, 0.4]), torch.zeros(0)],
        "labels": [torch.tensor([2, 1]), torch.zeros(0, dtype=torch.int64)],
        "size": [[32, 32], [20, 32]],
    }
    outputs = BoxOutputs({}, {}, [], (32, 32))
    return [Shown("a", False, x, outputs, y, found), Shown("b", True, x, outputs, None, found)]


def test_pictures_show_likely_boxes_with_their_scores_and_no_padding() -> None:
    (figure,) = Detection().pictures(shown(), ["w", "x", "y"]).values()
    assert [len(axis.patches) for axis in figure.axes] == [2, 2, 4, 0, 0, 2, 0, 0]  # a box has a dark edge
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [[], ["0.90"], [], [], ["no label"], ["0.90"], ["no label"], []]
    assert [axis.images[0].get_array().shape[:2] for axis in figure.axes[:4:2]] == [(32, 32), (20, 32)]  # type: ignore[union-attr]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["w", "x", "y"]


def test_errors_are_drawn_by_kind_and_domain() -> None:
    values = {name: 0.25 * place for place, name in enumerate(ERRORS)}
    (figure,) = Detection().metric_pictures({"a": values, "b": {**values, "ap50": 1.0}, "c": {}}).values()
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [0, 0.25, 0.5, 0.75, 1] * 2
    assert [label.get_text() for label in axis.get_xticklabels()] == [name.replace("_", " ") for name in ERRORS]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert Detection().metric_pictures({"c": dict.fromkeys(ERRORS, math.nan)}) == {}


def test_examples_of_targets_can_be_drawn_side_by_side() -> None:
    kept = json.loads(json.dumps(Detection().examples(shown(), ["w", "x", "y"])))
    assert (kept["kind"], kept["classes"]) == ("boxes", ["w", "x", "y"])
    assert list(kept["targets"]) == ["b"]
    first, second = kept["targets"]["b"]
    assert (first["label"], first["found"], second["found"]) == (None, [[1, 1, 9, 9, 2, 0.9]], [])
    rows = box_rows("a->b", {"one": [first, second], "two": [first, {**second, "jpeg": first["jpeg"]}]})
    assert [list(row.sets) for row in rows] == [["label", "one", "two"]] * 2
    assert [row.image.shape for row in rows] == [(32, 32, 3), (20, 32, 3)]
    assert rows[1].sets["two"] is None, "another image"
    assert rows[0].sets["two"].scores.tolist() == [0.9]  # type: ignore[union-attr]
    large = kept_boxes(np.zeros((100, 800, 3)), None, Boxes(np.array([[0, 0, 8, 4.0]]), np.zeros(1), np.ones(1)))
    assert large["found"] == [[0, 0, 4, 2, 0, 1]]


def test_what_detection_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="Detection knows no unknown classes"):
        Detection().metrics(3, rejects=True)
